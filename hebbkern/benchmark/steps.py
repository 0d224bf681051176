"""The learning steps as cases: a rule of hebbkern against every formulation of it in baselines.py and peers.py."""

import functools

import torch

import hebbkern as hk
from hebbkern.benchmark import baselines, peers
from hebbkern.benchmark.contest import (
    Case,
    Inputs,
    flat,
    forward,
    forward_and_weight_gradient,
    images,
    shapes,
    unscreened,
    weights,
)

CHANNELS_LAST = "swap", "gradient"  # convolutions are faster so, unfolding is not


def rule_case(rule, formula, x_shape, w_shape, *, dense=False, lr=0.02, scale=None, **settings):
    """One learning step in place. All contestants start from the same weights; the result is how far they moved."""
    floor = forward_and_weight_gradient if dense else forward

    def build():
        i = Inputs(images(*x_shape), weights(*w_shape, scale=scale))
        labels = {"labels": torch.arange(x_shape[0]) % w_shape[0]} if formula == "teacher" else {}
        wide = {name: value.numpy() for name, value in labels.items()}
        numpy, start = baselines.NUMPY[formula], i.W64.copy()
        return {
            **ours(i, lambda w: rule.step_(w, i.x, lr=lr, **labels), settings),
            "numpy": (lambda: numpy(i.W64, i.X64(), lr, **wide), lambda _: torch.from_numpy(i.W64 - start)),
            **formulations(formula, i, lr, **labels),
            "floor": (floor(i.x, copy(i.w)), None),
        }

    name = f"{type(rule).__name__} step, {shapes(x_shape, w_shape)}"
    return Case("rules", name, build, "forward + weight gradient" if dense else "forward", **settings)


def hebbcl_case(x_shape, w_shape, *, lr=0.02, **settings):
    """The freezing test, then the step: neurons nearer to a sample than half of them are keep still."""
    rule = hk.WTA(k=1, similarity="dot", normalise="row_max")

    def build():
        w = weights(*w_shape)
        i = Inputs(images(*x_shape), w / w.abs().amax(1, keepdim=True))
        start, threshold = i.W64.copy(), peers.match(i.plain, i.W).median().item() * 1.0001  # next to no neuron

        def step(w):
            _, distance = hk.ops.nearest_patch(i.x, w)
            rule.step_(w, i.x, lr=lr, frozen=distance < threshold)

        return {
            **ours(i, step, settings),
            "numpy": (
                lambda: baselines.numpy_hebbcl(i.W64, i.x64, lr, threshold),
                lambda _: torch.from_numpy(i.W64 - start),
            ),
            **formulations("hebbcl", i, lr, threshold),
            "floor": (forward(i.x, copy(i.w)), None),
        }

    return Case("rules", f"HebbCL step with freezing, {shapes(x_shape, w_shape)}", build, "forward", **settings)


def epoch_case(samples, inputs, neurons, batch, *, lr=0.02, share=0.1, **settings):
    """An epoch of Krotov and Hopfield's rule with everything counted, also the shuffling; peers do a share of it."""
    rule = hk.KrotovHopfield()

    def build(samples=samples, share=share):
        i, part = Inputs(images(samples, inputs), weights(neurons, inputs, scale=1.0)), round(samples * share)
        start, W, few, few64 = torch.from_numpy(i.W64.copy()), i.W.clone(), i.plain[:part], i.x64[:part]
        lay_out, fast = peers.formulated("krotov_hopfield", "eager", compiled=True)
        _, plain = peers.formulated("krotov_hopfield", "eager")
        numpy, compiled, idle = baselines.NUMPY["krotov_hopfield"], lay_out(W), copy(i.w)

        def contestant(step, x, w):
            return lambda: shuffled(lambda rows: step(w, rows, lr), x, batch), lambda _: torch.as_tensor(w) - start

        return {
            "hebbkern": contestant(lambda w, rows, lr: rule.step_(w, rows, lr=lr), i.x, i.w),
            "numpy": contestant(numpy, few64, i.W64),
            "eager": contestant(plain, few, W),
            "compiled eager": contestant(fast, few, compiled),
            "floor": (lambda: shuffled(lambda rows: rows @ idle.T, i.x, batch), None),
        }

    name = f"KrotovHopfield epoch, {samples} x {inputs} to {neurons}, batches of {batch}; peers: {share:.0%} of it"
    shares = dict.fromkeys(("numpy", "eager", "compiled eager"), share)
    rehearsal = functools.partial(build, samples=3 * batch, share=1)
    return Case("rules", name, build, "forward", share=shares, rehearsal=rehearsal, **settings)


def shuffled(learn, x, batch):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    for rows in order.split(batch):
        learn(x[rows])


def ours(inputs, step, settings):
    """hebbkern, and where there is a limit for it, hebbkern without screening."""
    moved, start = inputs.w, inputs.W.clone()
    found = {"hebbkern": (lambda: step(moved), lambda _: flat(moved) - start)}
    if "unscreened" in settings.get("limits", {}):
        plain = copy(inputs.w)
        found["unscreened"] = (unscreened(lambda: step(plain)), lambda _: flat(plain) - start)
    return found


def formulations(formula, inputs, *arguments, **labels):
    """Every formulation of peers.py that applies, as torch runs it and compiled."""
    found, kernel = {}, tuple(inputs.w.shape[2:])
    for name in peers.formulations(kernel):
        x = inputs.x if name in CHANNELS_LAST else inputs.plain
        for compiled in (False, True):
            lay_out, step = peers.formulated(formula, name, kernel, compiled)
            found["compiled " * compiled + name] = formulation(step, lay_out(inputs.w), x, *arguments, **labels)
    return found


def formulation(step, w, *arguments, **labels):
    start = w.clone()
    return lambda: step(w, *arguments, **labels), lambda _: flat(w - start)


def copy(w):
    return w.clone(memory_format=torch.preserve_format)
