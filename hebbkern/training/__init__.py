"""The training driver: a pytorch-ignite engine in which every Hebbian layer learns (pip install 'hebbkern[train]')."""

from hebbkern.training.batches import Batches
from hebbkern.training.checkpoint import last_checkpoint
from hebbkern.training.engine import hebbian_trainer
from hebbkern.training.handlers import (
    Activations,
    Convergence,
    Curves,
    Figures,
    WeightHistograms,
    WeightPictures,
    Winners,
)
from hebbkern.training.revival import ReviveDead
from hebbkern.training.train import train

__all__ = [
    "Activations",
    "Batches",
    "Convergence",
    "Curves",
    "Figures",
    "ReviveDead",
    "WeightHistograms",
    "WeightPictures",
    "Winners",
    "hebbian_trainer",
    "last_checkpoint",
    "train",
]
