"""SoftHebb's network of four layers: three convolutions learn by soft winner-take-all, a linear layer reads them out.

Journé, Rodriguez, Guo and Moraitis, Hebbian deep learning without feedback (SoftHebb), ICLR 2023: 80.3 % on CIFAR-10.
The settings in `STAGES` and `Plan` are those of the authors' released network. All convolutions learn at once, in one
epoch over the images, without labels, gradients or augmentation: each on what the layers before it answer, batch norm
by the batch. Afterwards batch norm's statistics are taken anew (`settle`), over many images and for weights that stay.

What the network says of an image is the same in every epoch of the readout, so it is computed once (`outputs`), and
several readouts are trained on it side by side. Features are less their mean and divided by their deviation, one number
for all: random filters stay 25 long while learnt ones shrink, and to Adam's steps lengths are not all the same. The
authors' readout drops half of its inputs in training; on validation images that was worth nothing here (80.10 against
80.06 %, of 40,000 images) and cost twice the time.

Shapes: images [n, C, H, W] from 0 to 1, H and W divisible by 8. Deterministic in the seed, on one machine.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import hebbkern as hk
from examples.papers.common import held_out as once
from examples.papers.hebbian_cnn.network import CHUNK, outputs, settle
from examples.papers.krotov_hopfield.network import Readouts, Schedule, fit, mean_of, measure

KINDS = ("learnt", "random")


@dataclass(frozen=True)
class Stage:
    """Batch norm, a convolution, the triangle and a pool.

    Args:
        channels, side: filters of the convolution, and their side; padding keeps the size of the image.
        inverse: of the softmax's temperature. rate: of learning. power: of the triangle.
        pool: "max" (4x4, every second place) or "average" (2x2).
    """

    channels: int
    side: int
    inverse: float
    rate: float
    power: float
    pool: str = "max"


STAGES = (
    Stage(96, 5, 1.0, 0.08, 0.7),
    Stage(384, 3, 0.65, 0.005, 1.4),
    Stage(1536, 3, 0.25, 0.01, 1.0, "average"),
)


@dataclass(frozen=True)
class Plan:
    """How the network learns, and what its readouts may be.

    Args:
        batch: images a step, for one epoch.
        length: of a filter at the start, on average; learning takes it towards 1 (to 4.6, 5.1 and 17.8 on CIFAR-10).
        rate_power: see `hebbkern.SoftWTA`. settled: images over which batch norm's statistics are taken.
        readouts: among which the validation images choose; all of the same batch and epochs.
    """

    stages: tuple[Stage, ...] = STAGES
    batch: int = 10
    length: float = 25.0
    rate_power: float = 0.5
    settled: int = 2000
    readouts: tuple[Schedule, ...] = tuple(Schedule(rate=rate, epochs=20, batch=128) for rate in (5e-5, 1e-4, 2e-4))


FAST = Plan(
    stages=tuple(replace(stage, channels=stage.channels // 8) for stage in STAGES),
    settled=200,
    readouts=(Schedule(rate=1e-3, epochs=4, batch=64),),
)


@dataclass(frozen=True)
class Result:
    """Accuracies in percent: `validation` of a readout that learnt from the other images, `test` from all of them."""

    kind: str
    seed: int
    validation: float
    test: float
    readout: Schedule


class Triangle(nn.Module):
    """relu(u − mean of u over the channels) ** power, for u [B, C, ...].

    Coates, Ng and Lee, An analysis of single-layer networks in unsupervised feature learning, AISTATS 2011, with
    SoftHebb's power: which of an image's filters respond more than they do on average, and by how much.
    """

    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def forward(self, u: Tensor) -> Tensor:
        above = F.relu(u - u.mean(dim=1, keepdim=True))
        return above if self.power == 1 else above.pow(self.power)

    def extra_repr(self) -> str:
        return f"power={self.power}"


def build(plan: Plan, *, channels: int = 3, seed: int = 0, device: str | torch.device = "cpu") -> nn.Sequential:
    """Images [B, channels, H, W] → [B, features]; weights from N(0, length² / inputs), drawn from the seed."""
    generator, parts = torch.Generator().manual_seed(seed), OrderedDict()
    for number, stage in enumerate(plan.stages, 1):
        rule = hk.SoftWTA(temperature=1 / stage.inverse, rate_power=plan.rate_power, normalise="global_max")
        conv = hk.nn.HebbianConv2d(
            channels, stage.channels, stage.side, padding=stage.side // 2, padding_mode="reflect", rule=rule
        )
        spread = plan.length / math.sqrt(conv.weight[0].numel())
        conv.weight.copy_(spread * torch.randn(conv.weight.shape, generator=generator))
        parts[f"norm{number}"], parts[f"conv{number}"] = nn.BatchNorm2d(channels, affine=False), conv
        parts[f"triangle{number}"] = Triangle(stage.power)
        parts[f"pool{number}"] = nn.MaxPool2d(4, 2, 1) if stage.pool == "max" else nn.AvgPool2d(2)
        channels = stage.channels
    return nn.Sequential(parts | {"flat": nn.Flatten()}).to(device)


@torch.no_grad()
def learn(model: nn.Sequential, x: Tensor, plan: Plan, *, seed: int = 0, progress: bool = False) -> None:
    """One epoch over the images x, in an order drawn from the seed; every convolution learns from each batch."""
    rates = {f"conv{number}": stage.rate for number, stage in enumerate(plan.stages, 1)}
    last, rate = list(rates.items())[-1]
    before = model[: list(dict(model.named_children())).index(last)]  # the last one's answer is not asked for
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    model.train()
    with hk.learning(model, rates):
        for batch in tqdm(order.split(plan.batch), desc="learning", disable=not progress):
            images = x[batch].contiguous(memory_format=torch.channels_last)  # a tenth faster
            model.get_submodule(last).learn(before(images), rate)


class Trial:
    """A network, learnt or as drawn, and readouts of what it says of the training images, the last fifth to validate.

    Its filters learn from all of these images, without labels. Features are kept as bfloat16, 49 kB an image: 2.5 GB
    for 50,000.
    """

    def __init__(self, plan: Plan, x: Tensor, y: Tensor, *, kind: str, seed: int, keep=None, progress: bool = False):
        self.plan, self.y, self.seed = plan, y, seed
        self.model = build(plan, channels=x.shape[1], seed=seed, device=x.device)

        def make() -> dict:
            learn(self.model, x, plan, seed=seed, progress=progress)
            return self.model.state_dict()

        if kind == "learnt":
            about = replace(plan, settled=0, readouts=())  # which learning does not depend on
            self.model.load_state_dict(make() if keep is None else keep(f"SoftHebb {about} {seed}", make))
        settle(self.model, x[: plan.settled], CHUNK)
        self.x = outputs(self.model, x)
        self.mean = mean_of(self.x)
        self.x -= self.mean
        self.deviation = sum(part.float().square().sum() for part in self.x.split(1000)).div(self.x.numel()).sqrt()
        self.x /= self.deviation

    def fitted(self, readouts: tuple[Schedule, ...], count: int) -> Readouts:
        """Readouts that learnt from the first `count` images."""
        torch.manual_seed(self.seed)
        classes = int(self.y.max()) + 1
        model = Readouts(self.x.shape[1], classes, len(readouts)).to(self.x.device)
        fit(model, self.x[:count], self.y[:count], list(readouts), seed=self.seed)
        return model

    def choose(self) -> tuple[Schedule, float]:
        """The readout that does best on the validation images, and its accuracy on them in percent."""
        cut = len(self.x) - len(self.x) // 5
        shares = measure(self.fitted(self.plan.readouts, cut), self.x[cut:], self.y[cut:])
        best = max(shares)
        return self.plan.readouts[shares.index(best)], 100 * best

    def test(self, readout: Schedule, x: Tensor, y: Tensor) -> float:
        """Accuracy in percent on other images, of a readout that learnt from all training images."""
        seen = outputs(self.model, x).sub_(self.mean).div_(self.deviation)
        return 100 * measure(self.fitted((readout,), len(self.x)), seen, y)[0]


def run(
    sets,
    *,
    fast: bool = False,
    seeds: Iterable[int] = range(3),
    progress: bool = False,
    device=None,
    plan: Plan | None = None,
    keep: Callable[[str, Callable[[], dict]], dict] | None = None,
) -> Iterator[Result]:
    """Learnt and random filters with each seed, as they are done; the readout is chosen on validation images.

    Args:
        sets: x, x_test [n, C, H, W] from 0 to 1, y, y_test; the training images in a random order.
        fast: an eighth of the channels and a fifth of the readout's epochs.
        device: where to compute; by default where the images are.
        plan: in place of what `fast` asks for.
        keep: gives what was learnt once by a key that tells the settings and the seed, not the images, or makes it, as
            `cnn_cache.Cache.state`.

    With 50,000 images of 32x32, minutes of one processor core (measured, AVX-512 with bf16): learning 21, features of
    all images 8, readouts 3.
    """
    plan = plan or (FAST if fast else Plan())
    tensors = (sets.x, sets.y, sets.x_test, sets.y_test)
    opened = once.Sets(*(tensor.to(device or tensor.device) for tensor in tensors))
    for seed in seeds:
        for kind in KINDS:
            trial = Trial(plan, opened.x, opened.y, kind=kind, seed=seed, keep=keep, progress=progress)
            readout, validation = trial.choose()
            test = trial.test(readout, *opened.test(kind, seed))
            yield Result(kind, seed, validation, test, readout)
