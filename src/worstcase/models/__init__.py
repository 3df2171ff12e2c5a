"""The paper's networks."""

from worstcase.models.lenet import LeNet

__all__ = ["LeNet"]
