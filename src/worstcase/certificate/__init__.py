"""A bound from below: what no chip in the box does worse than."""

from worstcase.certificate.interval import Certificate, certify
from worstcase.certificate.products import Unsupported

__all__ = ["Certificate", "Unsupported", "certify"]
