"""The learning steps as cases: a rule of hebbkern against every formulation of it in baselines.py and peers.py."""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hebbkern as hk
from hebbkern.benchmark import baselines, case, peers
from hebbkern.benchmark.case import BARE, Case, Implementation, Inputs, Shape, copy, images, in_place, shapes, weights

CHANNELS_LAST = "swap", "gradient"  # convolutions are faster so, unfolding is not


def formula(rule: hk.Rule) -> str:
    """The name of a rule in baselines.py, peers.py and hebbkern.reference, as in "krotov_hopfield"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(rule).__name__).lower()


def implementations(rule: hk.Rule, i: Inputs, lr: float, unscreened: bool = False) -> dict[str, Implementation]:
    """One learning step in place, from the same weights in all implementations.

    Where peers.py has no formulation of the rule, "eager" is hebbkern's own eager backend; where baselines.py has none,
    "numpy" is the function of hebbkern.reference, if there is one.
    """
    name, labels = formula(rule), torch.arange(len(i.x)) % len(i.w)
    given: dict[str, Any] = {"labels": labels} if getattr(rule, "uses_labels", name == "supervised") else {}
    given64 = {"labels": labels.numpy()} if given else {}

    def step(w: Tensor) -> None:
        rule.step_(w, i.x, lr=lr, **given)

    runs = hebbkern(i, step, unscreened)
    if numpy := numpy_step(name, i, lr, **given64):
        runs["numpy"] = in_place(numpy, i.W64)
    if name in peers.STEPS:
        return runs | formulations(name, i, lr, **given)
    return runs | {"eager": in_place(case.within(lambda: hk.backend("eager"), step), copy(i.w))}


def rule_case(
    rule: hk.Rule,
    x_shape: Shape,
    w_shape: Shape,
    *,
    dense: bool = False,
    lr: float = 0.02,
    scale: float | None = None,
    **settings: Any,
) -> Case:
    """One learning step of a rule; `dense`: compared with a forward pass that includes the weight gradient."""

    def build() -> dict[str, Implementation]:
        i = Inputs(images(*x_shape), weights(*w_shape, scale=scale))
        runs = implementations(rule, i, lr, unscreened="unscreened" in settings.get("limits", {}))
        return runs | {"forward": Implementation(BARE[bare](i.x, copy(i.w)))}

    bare = "forward + weight gradient" if dense else "forward"
    return Case("rules", f"{type(rule).__name__} step, {shapes(x_shape, w_shape)}", build, bare, **settings)


def grouped_case(rule: hk.Rule, x_shape: Shape, w_shape: Shape, *, lr: float = 1e-3, **settings: Any) -> Case:
    """One learning step of a rule on a grouped convolution; "eager" is hebbkern's own eager backend."""
    groups = x_shape[1] // w_shape[1]

    def build() -> dict[str, Implementation]:
        x, w = images(*x_shape), weights(*w_shape)

        def step(w: Tensor) -> None:
            rule.step_(w, x, lr=lr, groups=groups)

        return {
            "hebbkern": in_place(step, copy(w)),
            "eager": in_place(case.within(lambda: hk.backend("eager"), step), copy(w)),
            "forward": Implementation(lambda: torch.nn.functional.conv2d(x, w, groups=groups)),
        }

    name = f"{type(rule).__name__} step, {shapes(x_shape, w_shape)}, {groups} groups"
    return Case("rules", name, build, "forward", **settings)


def numpy_step(name: str, inputs: Inputs, lr: float, **labels: Any) -> Callable[[baselines.Array], None] | None:
    """The step in NumPy, in place of W [K, N]; None where neither baselines.py nor hebbkern.reference has the rule."""
    if baseline := getattr(baselines, f"numpy_{name}", None):
        return lambda W: baseline(W, inputs.X64(), lr, **labels)
    if (reference := getattr(hk.reference, name, None)) is None:
        return None

    def step(W: baselines.Array) -> None:
        W[:] = np.reshape(reference(W.reshape(inputs.w.shape), inputs.x64, lr), W.shape)

    return step


def hebbcl_case(x_shape: Shape, w_shape: Shape, *, lr: float = 0.02, **settings: Any) -> Case:
    """The freezing test and the step; a neuron is frozen where it is nearer to a sample than the median neuron."""
    rule = hk.WTA(k=1, similarity="dot", normalise="row_max")

    def build() -> dict[str, Implementation]:
        w = weights(*w_shape)
        i = Inputs(images(*x_shape), w / w.abs().amax(1, keepdim=True))
        distances = baselines.eager_nearest_patch(i.plain, i.W)
        threshold = distances.median().item() * 1.0001  # lies next to no neuron's distance

        def step(w: Tensor) -> None:
            _, distance = hk.ops.nearest_patch(i.x, w)
            rule.step_(w, i.x, lr=lr, frozen=distance < threshold)

        return {
            **hebbkern(i, step),
            "numpy": in_place(lambda W: baselines.numpy_hebbcl(W, i.x64, lr, threshold), i.W64),
            **formulations("hebbcl", i, lr, threshold),
            "forward": Implementation(BARE["forward"](i.x, copy(i.w))),
        }

    return Case("rules", f"HebbCL step with freezing, {shapes(x_shape, w_shape)}", build, "forward", **settings)


def epoch_case(
    samples: int, inputs: int, neurons: int, batch_size: int, *, lr: float = 0.02, share: float = 0.1, **settings: Any
) -> Case:
    """An epoch of Krotov and Hopfield's rule with its shuffling; the others do a share of it."""
    rule = hk.KrotovHopfield()

    def build(samples: int = samples, share: float = share) -> dict[str, Implementation]:
        i, part = Inputs(images(samples, inputs), weights(neurons, inputs, scale=1.0)), round(samples * share)
        lay_out, compiled = peers.formulated("krotov_hopfield", "eager", compiled=True)
        _, eager = peers.formulated("krotov_hopfield", "eager")
        idle = copy(i.w)

        def epoch(step: Callable[[Any, Any, float], Any], x: Any, w: Any) -> Implementation:
            return in_place(lambda w: shuffled(lambda rows: step(w, rows, lr), x, batch_size), w)

        return {
            "hebbkern": epoch(lambda w, rows, lr: rule.step_(w, rows, lr=lr), i.x, copy(i.w)),
            "numpy": epoch(baselines.numpy_krotov_hopfield, i.x64[:part], i.W64),
            "eager": epoch(eager, i.plain[:part], copy(i.W)),
            "compiled eager": epoch(compiled, i.plain[:part], lay_out(i.W)),
            "forward": Implementation(lambda: shuffled(lambda rows: rows @ idle.T, i.x, batch_size)),
        }

    name = f"KrotovHopfield epoch, {samples} x {inputs} to {neurons}, batches of {batch_size}; peers: {share:.0%} of it"
    shares = {"numpy": share, "eager": share, "compiled eager": share}
    rehearsal = functools.partial(build, samples=3 * batch_size, share=1)
    return Case("rules", name, build, "forward", share=shares, rehearsal=rehearsal, **settings)


def shuffled(learn: Callable[[Any], Any], x: Any, batch_size: int) -> None:
    """Calls learn with the batches of x in a random order."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    for rows in order.split(batch_size):
        learn(x[rows])


def hebbkern(inputs: Inputs, step: Callable[[Tensor], None], unscreened: bool = False) -> dict[str, Implementation]:
    """hebbkern's implementation, and with `unscreened` the one without screening."""
    plain = (
        {"unscreened": in_place(case.within(lambda: hk.screening(False), step), copy(inputs.w))} if unscreened else {}
    )
    return {"hebbkern": in_place(step, copy(inputs.w))} | plain


def formulations(formula: str, inputs: Inputs, *arguments: Any, **labels: Any) -> dict[str, Implementation]:
    """Every formulation of peers.py that applies, in eager torch and compiled."""
    runs, kernel = {}, tuple(inputs.w.shape[2:])
    for name in peers.formulations(kernel):
        x = inputs.x if name in CHANNELS_LAST else inputs.plain
        for prefix in ("", "compiled "):
            lay_out, step = peers.formulated(formula, name, kernel, compiled=bool(prefix))
            run = functools.partial(lambda step, x, w: step(w, x, *arguments, **labels), step, x)
            runs[prefix + name] = in_place(run, lay_out(inputs.w))
    return runs
