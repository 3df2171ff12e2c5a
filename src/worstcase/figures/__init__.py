"""Figures, from records alone."""

from worstcase.figures.accuracy_over_thg import accuracy_over_thg

__all__ = ["accuracy_over_thg"]
