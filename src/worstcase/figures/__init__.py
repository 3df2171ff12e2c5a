"""Figures, from records alone."""

from worstcase.figures.accuracy_over_thg import accuracy_over_thg
from worstcase.figures.diagnosis import diagnosis_figures

__all__ = ["accuracy_over_thg", "diagnosis_figures"]
