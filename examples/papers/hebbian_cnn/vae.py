"""The unsupervised baseline: a β-VAE whose encoder is the five stages (the paper's figure 5).

    model = VAE(stages, latent=256)
    loss = model.loss(images)           # ½‖x − x̂‖² + β KL, a mean over the images

Linear layers map the encoder's last stage to the means and log variances of 256 Gaussian variables. The decoder
mirrors the stages: linear layers, upsampling for pools, transposed convolutions, with ReLU and batch norm in between.
β-VAE: Higgins et al., ICLR 2017; β = 0.5 and 256 variables are the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.papers.hebbian_cnn.network import Stage

BETA = 0.5


class VAE(nn.Module):
    """An encoder of stages, and a decoder back to images."""

    def __init__(self, stages: nn.Sequential, latent: int = 256, beta: float = BETA):
        super().__init__()
        width = stages[-1].outputs.numel()
        self.stages, self.beta = stages, beta
        self.mean, self.spread = nn.Linear(width, latent), nn.Linear(width, latent)
        first = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.BatchNorm1d(width))
        self.decoder = nn.Sequential(first, *(mirrored(stage, last=stage is stages[0]) for stage in reversed(stages)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns decoded images, and means and log variances [B, latent]; in training mode a sample is decoded."""
        encoded = self.stages(x).flatten(1)
        mean, spread = self.mean(encoded).float(), self.spread(encoded).float()
        code = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        return self.decoder(code), mean, spread

    def loss(self, x: Tensor) -> Tensor:
        """Returns −ELBO with pixels of unit variance and KL times β; needs no labels."""
        decoded, mean, spread = self(x)
        distance = F.mse_loss(decoded.float(), x.float(), reduction="sum") / 2
        divergence = (mean.square() + spread.exp() - 1 - spread).sum() / 2
        return (distance + self.beta * divergence) / len(x)


def mirrored(stage: Stage, *, last: bool) -> nn.Sequential:
    """Returns layers from a stage's outputs back to its inputs; the last ones give pixels of any sign."""
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
