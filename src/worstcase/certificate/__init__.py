"""A bound from below: what no chip in the box does worse than."""

from worstcase.certificate.certify import Certificate, certify, largest_thg, largest_thgs
from worstcase.certificate.products import Unsupported

__all__ = ["Certificate", "Unsupported", "certify", "largest_thg", "largest_thgs"]
