"""Training methods, one LightningModule each."""

from worstcase.methods.atrice import ATrice
from worstcase.methods.base import Method
from worstcase.methods.vanilla import Vanilla

__all__ = ["ATrice", "Method", "Vanilla"]
