"""The training driver: a pytorch-ignite engine in which every Hebbian layer learns (pip install 'hebbkern[train]')."""

from hebbkern.training.batches import Batches
from hebbkern.training.checkpoint import last_checkpoint
from hebbkern.training.engine import hebbian_trainer
from hebbkern.training.train import train

__all__ = ["Batches", "hebbian_trainer", "last_checkpoint", "train"]
