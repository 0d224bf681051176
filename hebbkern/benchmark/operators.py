"""The operators of hebbkern.ops as cases."""

from typing import Any

import torch

import hebbkern as hk
from hebbkern.benchmark import baselines
from hebbkern.benchmark.case import BARE, Case, Implementation, Inputs, Shape, flat, images, in_place, shapes, weights

RESPONSES = {"compete": 1, "nearest_patch": 1}  # the output that is compared, where it is not the first


def operator_case(stem: str, x_shape: Shape, w_shape: Shape, **arguments: int) -> Case:
    """One call of the operator `stem`, which takes x, w and the arguments, as its two baselines do."""

    def build() -> dict[str, Implementation]:
        i = Inputs(images(*x_shape), weights(*w_shape))
        numpy, eager = (getattr(baselines, f"{name}_{stem}") for name in ("numpy", "eager"))
        operator, output = getattr(hk.ops, stem), RESPONSES.get(stem, 0)
        return {
            "hebbkern": Implementation(lambda: operator(i.x, i.w, **arguments), lambda outputs: flat(outputs[output])),
            "numpy": Implementation(lambda: numpy(i.X64(), i.W64, **arguments), flat),
            "eager": Implementation(lambda: eager(i.X(), i.W, **arguments), flat),
            "forward": Implementation(BARE[bare](i.x, i.w)),
        }

    name = "".join(f"{key} = {value}, " for key, value in arguments.items()) + shapes(x_shape, w_shape)
    bare = "forward + weight gradient" if stem == "dense_update" else "forward"
    return Case(stem, name, build, bare)


def accumulate_case(x_shape: Shape, w_shape: Shape, k: int) -> Case:
    """The sums of the patches that each neuron has won."""

    def build() -> dict[str, Implementation]:
        i, neurons = Inputs(images(*x_shape), weights(*w_shape)), w_shape[0]
        targets, c = hk.ops.compete(i.x, i.w, k)[0], torch.linspace(1, -0.4, k)
        kernel: Any = w_shape[2:]
        targets64, c64 = targets.long(), c.double().numpy()
        runs = {
            "hebbkern": lambda: hk.ops.accumulate(i.x, targets, c, neurons=neurons, kernel=kernel)[0],
            "numpy": lambda: baselines.numpy_accumulate(i.X64(), targets64.numpy(), c64, neurons),
            "eager": lambda: baselines.eager_accumulate(i.X(), targets64, c, neurons),
            "forward": BARE["forward"](i.x, i.w),
        }
        return {name: Implementation(run, flat) for name, run in runs.items()}

    return Case("accumulate", f"{k} targets a patch, {shapes(x_shape, w_shape)}", build, "forward")


def apply_case(neurons: int, inputs: int, lr: float = 0.02) -> Case:
    """A step whose sums are divided by their largest absolute entry."""

    def build() -> dict[str, Implementation]:
        i = Inputs(weights(neurons, inputs), weights(neurons, inputs, scale=1.0))  # x are the sums
        decay, idle = torch.linspace(0, 1, neurons), i.W.clone()
        decay64 = decay.double().numpy()

        def plain(w: Any, sums: Any, decay: Any) -> None:
            step = sums - decay[:, None] * w
            w += lr * step / abs(step).max()

        return {
            "hebbkern": in_place(lambda w: hk.ops.apply_(w, i.x, decay=decay, lr=lr, normalise="global_max"), i.w),
            "numpy": in_place(lambda w: plain(w, i.x64, decay64), i.W64),
            "eager": in_place(lambda w: plain(w, i.plain, decay), i.W),
            "forward": Implementation(lambda: idle.add_(i.x, alpha=lr)),
        }

    return Case("apply", f"global maximum, {neurons} x {inputs}", build, "weight.add_(sum)")


def kwinners_case(shape: Shape, k: int, **settings: Any) -> Case:
    """The k highest of axis 1."""

    def build() -> dict[str, Implementation]:
        y = weights(*shape, scale=1.0)
        plain, y64 = y.contiguous(), y.double().contiguous().numpy()
        compiled = torch.compile(baselines.eager_kwinners, dynamic=False)
        runs = {
            "hebbkern": lambda: hk.ops.kwinners(y, k, 1),
            "numpy": lambda: baselines.numpy_kwinners(y64, k),
            "eager": lambda: baselines.eager_kwinners(plain, k),
            "compiled eager": lambda: compiled(plain, k),
            "forward": lambda: baselines.eager_kwinners(plain, k),
        }
        return {name: Implementation(run, flat) for name, run in runs.items()}

    return Case("kwinners", f"k = {k} of {'x'.join(map(str, shape))}", build, "topk + scatter", **settings)
