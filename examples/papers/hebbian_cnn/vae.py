"""The unsupervised baseline of hebbian_cnn.py: a β-VAE whose encoder is the five stages (the paper's figure 5).

    model = VAE(stages, latent=256)
    loss = model.loss(images)           # ½‖x − x̂‖² + β KL, a mean over the images

The encoder's last stage is mapped to the mean and the logarithm of the variance of 256 Gaussian variables; the decoder
mirrors the stages: a linear layer for each linear one, upsampling for pools, transposed convolutions for convolutions,
ReLU and batch norm between them. β-VAE: Higgins et al., ICLR 2017; β = 0.5 and 256 variables are the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.papers.hebbian_cnn.network import Stage

BETA = 0.5


class VAE(nn.Module):
    """Stages, and what turns their answers into images again."""

    def __init__(self, stages: nn.Sequential, latent: int = 256, beta: float = BETA):
        super().__init__()
        width = stages[-1].outputs.numel()
        self.stages, self.beta = stages, beta
        self.mean, self.spread = nn.Linear(width, latent), nn.Linear(width, latent)
        first = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.BatchNorm1d(width))
        self.decoder = nn.Sequential(first, *(mirrored(stage, last=stage is stages[0]) for stage in reversed(stages)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is drawn for each image, decoded; means and logarithms of variances [B, latent]."""
        seen = self.stages(x).flatten(1)
        mean, spread = self.mean(seen).float(), self.spread(seen).float()
        drawn = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        return self.decoder(drawn), mean, spread

    def loss(self, x: Tensor) -> Tensor:
        """−ELBO with unit variance of the pixels, KL times β; without labels."""
        seen, mean, spread = self(x)
        distance = F.mse_loss(seen.float(), x.float(), reduction="sum") / 2
        divergence = (mean.square() + spread.exp() - 1 - spread).sum() / 2
        return (distance + self.beta * divergence) / len(x)


def mirrored(stage: Stage, *, last: bool) -> nn.Sequential:
    """From a stage's outputs back to the shape of its inputs; the last one answers pixels, of any sign."""
    parts: list[nn.Module] = []
    if len(stage.outputs) == 1:
        count = stage.inputs.numel()
        parts += [nn.Linear(stage.outputs[0], count), nn.Unflatten(1, stage.inputs)]
    else:
        side = [length - stage.layer.kernel_size[0] + 1 for length in stage.inputs[1:]]
        if stage.pool > 1:
            parts.append(nn.Upsample(size=side))
        parts.append(nn.ConvTranspose2d(stage.outputs[0], stage.inputs[0], stage.layer.kernel_size))
    if not last:
        parts += [nn.ReLU(inplace=True), nn.BatchNorm2d(stage.inputs[0])]
    return nn.Sequential(*parts)
