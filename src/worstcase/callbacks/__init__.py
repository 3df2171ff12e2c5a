"""Lightning callbacks."""

from worstcase.callbacks.checkpoint import MovableCheckpoint
from worstcase.callbacks.epoch_lines import EpochLines
from worstcase.callbacks.worst_case import WorstCaseAtTest, WorstCasePerEpoch

__all__ = ["EpochLines", "MovableCheckpoint", "WorstCaseAtTest", "WorstCasePerEpoch"]
