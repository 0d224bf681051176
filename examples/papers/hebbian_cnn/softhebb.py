"""SoftHebb's network of four layers: three convolutions learn by soft winner-take-all, a linear layer reads them out.

Journé, Rodriguez, Guo and Moraitis, Hebbian deep learning without feedback (SoftHebb), ICLR 2023: 80.3 % on CIFAR-10.
The settings in `STAGES` and `Plan` are those of the authors' released network. All convolutions learn together in one
epoch over the images, without labels, gradients or augmentation: each on the outputs of the layers before it, with
batch norm by the batch. Then the statistics of batch norm are estimated again over many images, for the final weights.

The features of an image are the same in every epoch of the readout, so they are computed once, and several readouts
are trained on them side by side. Features are centred and divided by one standard deviation for all: random filters
keep their norm of 25 while learnt ones shrink, and the steps of Adam depend on the scale. The authors' readout has a
dropout of one half; on validation images it gained nothing here (80.10 and 80.06 %, with 40,000 images) at twice the
time.

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
from examples.papers.common.held_out import HeldOutData
from examples.papers.common.readouts import Readouts, Schedule, fit, mean_of, measure
from examples.papers.hebbian_cnn.network import CHUNK, outputs, set_statistics

KINDS = ("learnt", "random")
Keep = Callable[[str, Callable[[], dict]], dict]


@dataclass(frozen=True)
class Stage:
    """Batch norm, a convolution, the triangle and a pool.

    Args:
        channels: filters of the convolution.
        side: of the filters; padding keeps the size of the image.
        inverse: inverse temperature of the softmax.
        rate: learning rate.
        power: of the triangle.
        pool: "max" (4x4, stride 2) or "average" (2x2).
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
    """How the network learns, and the readouts to choose from. Its text is part of the keys of the cache.

    Args:
        batch: images per step, for one epoch.
        length: average initial norm of a filter; learning takes it towards 1 (to 4.6, 5.1 and 17.8 on CIFAR-10).
        rate_power: see `hebbkern.SoftWTA`.
        settled: number of images for the statistics of batch norm.
        readouts: schedules, of the same batch and epochs; the best on validation images is taken.
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
    """Accuracies in percent: `validation` after learning from the other training images, `test` from all of them."""

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
    """Returns a network [B, channels, H, W] → [B, features]; the seed draws weights from N(0, length² / inputs)."""
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
    """Trains every convolution in one epoch over the images x, in an order drawn from the seed."""
    rates = {f"conv{number}": stage.rate for number, stage in enumerate(plan.stages, 1)}
    last, rate = list(rates.items())[-1]
    before = model[: list(dict(model.named_children())).index(last)]  # the output of the last one is not needed
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    model.train()
    with hk.learning(model, rates):
        for batch in tqdm(order.split(plan.batch), desc="learning", disable=not progress):
            images = x[batch].contiguous(memory_format=torch.channels_last)  # a tenth faster
            model.get_submodule(last).learn(before(images), lr=rate)


class Trial:
    """A network, learnt or random, and the readouts of its features; the last fifth of the images validates.

    The filters learn from all images, without labels. Features are bfloat16: 49 kB per image, 2.5 GB for 50,000.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        y: Tensor,
        *,
        kind: str,
        seed: int,
        keep: Keep | None = None,
        progress: bool = False,
    ):
        self.plan, self.y, self.seed = plan, y, seed
        self.model = build(plan, channels=x.shape[1], seed=seed, device=x.device)

        def make() -> dict:
            learn(self.model, x, plan, seed=seed, progress=progress)
            return self.model.state_dict()

        if kind == "learnt":
            about = replace(plan, settled=0, readouts=())  # learning does not depend on these
            self.model.load_state_dict(make() if keep is None else keep(f"SoftHebb {about} {seed}", make))
        set_statistics(self.model, x[: plan.settled], CHUNK)
        self.x = outputs(self.model, x)
        self.mean = mean_of(self.x)
        self.x -= self.mean
        self.deviation = sum(part.float().square().sum() for part in self.x.split(1000)).div(self.x.numel()).sqrt()
        self.x /= self.deviation

    def fitted(self, readouts: tuple[Schedule, ...], count: int) -> Readouts:
        """Returns readouts trained on the first `count` images."""
        torch.manual_seed(self.seed)
        classes = int(self.y.max()) + 1
        model = Readouts(self.x.shape[1], classes, len(readouts)).to(self.x.device)
        fit(model, self.x[:count], self.y[:count], list(readouts), seed=self.seed)
        return model

    def choose(self) -> tuple[Schedule, float]:
        """Returns the best readout on the validation images, and its accuracy there in percent."""
        cut = len(self.x) - len(self.x) // 5
        shares = measure(self.fitted(self.plan.readouts, cut), self.x[cut:], self.y[cut:])
        best = max(shares)
        return self.plan.readouts[shares.index(best)], 100 * best

    def test(self, readout: Schedule, x: Tensor, y: Tensor) -> float:
        """Returns the accuracy in percent on other images, after training the readout on all training images."""
        features = outputs(self.model, x).sub_(self.mean).div_(self.deviation)
        return 100 * measure(self.fitted((readout,), len(self.x)), features, y)[0]


def run(
    data: HeldOutData,
    *,
    fast: bool = False,
    seeds: Iterable[int] = range(3),
    progress: bool = False,
    device: str | torch.device | None = None,
    plan: Plan | None = None,
    keep: Keep | None = None,
) -> Iterator[Result]:
    """Yields the results of learnt and of random filters with each seed; the readout is chosen on validation images.

    With 50,000 images of 32x32 one processor core takes 21 minutes for learning, 8 for the features of all images and
    3 for the readouts (AVX-512 with bf16).

    Args:
        data: images from 0 to 1; the training images in a random order.
        fast: an eighth of the channels and a fifth of the readout's epochs.
        device: where to compute; None takes the device of the images.
        plan: replaces the plan that `fast` chooses.
        keep: cache of what is learnt: called with a key that names the settings and the seed, but not the images, and
            with a function that makes the state, as `Cache.state` is.
    """
    plan = plan or (FAST if fast else Plan())
    tensors = (data.x, data.y, data.x_test, data.y_test)
    moved = HeldOutData(*(tensor.to(device or tensor.device) for tensor in tensors))
    for seed in seeds:
        for kind in KINDS:
            trial = Trial(plan, moved.x, moved.y, kind=kind, seed=seed, keep=keep, progress=progress)
            readout, validation = trial.choose()
            test = trial.test(readout, *moved.test(kind, seed))
            yield Result(kind, seed, validation, test, readout)
