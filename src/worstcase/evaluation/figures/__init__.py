"""Figures, drawn from records alone."""

from worstcase.evaluation.figures.accuracy_over_thg import accuracy_over_thg
from worstcase.evaluation.figures.diagnosis import diagnosis_figures
from worstcase.evaluation.figures.evaluation import evaluation_figures
from worstcase.evaluation.figures.monte_carlo import monte_carlo

__all__ = ["accuracy_over_thg", "diagnosis_figures", "evaluation_figures", "monte_carlo"]
