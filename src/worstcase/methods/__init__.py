"""Training methods, one LightningModule each."""

from worstcase.methods.adversarial import Adversarial
from worstcase.methods.atrice import ATrice
from worstcase.methods.awp import AWP
from worstcase.methods.base import Method
from worstcase.methods.ibp import IBP
from worstcase.methods.mtl_ibp import MTLIBP
from worstcase.methods.pgd_at import PGDAT
from worstcase.methods.random_errors import RandomErrors
from worstcase.methods.sam import SAM
from worstcase.methods.trice import Trice
from worstcase.methods.universal_at import UniversalAT
from worstcase.methods.vanilla import Vanilla
from worstcase.methods.variation_aware import VariationAware

__all__ = [
    "AWP",
    "IBP",
    "MTLIBP",
    "PGDAT",
    "SAM",
    "ATrice",
    "Adversarial",
    "Method",
    "RandomErrors",
    "Trice",
    "UniversalAT",
    "Vanilla",
    "VariationAware",
]
