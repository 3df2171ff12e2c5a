"""Lightning callbacks."""

from worstcase.callbacks.epoch_lines import EpochLines
from worstcase.callbacks.worst_case import WorstCaseAtTest, WorstCasePerEpoch

__all__ = ["EpochLines", "WorstCaseAtTest", "WorstCasePerEpoch"]
