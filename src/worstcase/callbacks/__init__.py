"""Lightning callbacks."""

from worstcase.callbacks.checkpoint import MovableCheckpoint, WholeFiles
from worstcase.callbacks.epoch_lines import EpochLines
from worstcase.callbacks.worst_case import WorstCaseAtTest, WorstCasePerEpoch

__all__ = ["EpochLines", "MovableCheckpoint", "WholeFiles", "WorstCaseAtTest", "WorstCasePerEpoch"]
