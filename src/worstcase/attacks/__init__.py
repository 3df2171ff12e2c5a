"""Attacks on the weights: each returns a feasible perturbation and the accuracy that it leaves."""

from worstcase.attacks.base import Attack, AttackResult
from worstcase.attacks.ensemble import Ensemble
from worstcase.attacks.flwc import FLWC
from worstcase.attacks.lwc import LWC
from worstcase.attacks.monte_carlo import MonteCarlo
from worstcase.attacks.pgd import PGD

__all__ = ["FLWC", "LWC", "PGD", "Attack", "AttackResult", "Ensemble", "MonteCarlo"]
