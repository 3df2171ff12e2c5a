"""All figures of one evaluation."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from worstcase.evaluation.figures.accuracy_over_thg import accuracy_over_thg
from worstcase.evaluation.figures.diagnosis import diagnosis_figures, numbered
from worstcase.evaluation.figures.monte_carlo import monte_carlo
from worstcase.evaluation.record import Record

SETTINGS = ("network_settings", "method_settings", "reference_settings", "attack_settings")


def evaluation_figures(record: Record) -> dict[str, Figure]:
    """By file name: the worst chip's figures, a curve if there are several th_g, and Monte Carlo's chips."""
    figures = diagnosis_figures(record)
    if len({found.thg for found in record.attacks}) > 1:
        run = {
            "folder": ".",
            "network": record.model,
            "method": record.method,
            "clean_accuracy": record.clean_accuracy,
            "weights_perturbed": record.parameters_perturbed,
            **dict.fromkeys(SETTINGS, "{}"),
            **{name: getattr(record, name) for name in ("dataset", "full_scale", "reference", "seed")},
        }
        curve = [
            {
                **run,
                "attack": of.attack,
                "thg": of.thg,
                "attacked_accuracy": of.accuracy,
                "certified_accuracy": record.certified_at(of.thg),
            }
            for of in record.attacks
        ]
        figures["accuracy_over_thg"] = accuracy_over_thg(pd.DataFrame(curve))
    for found in record.attacks:
        if found.distribution:
            figures[numbered(f"monte_carlo-thg{found.thg:g}", figures)] = monte_carlo(record, found)
    return figures
