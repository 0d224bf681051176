"""The operators as cases: hebbkern.ops against NumPy, eager torch and the floor."""

import torch

import hebbkern as hk
from hebbkern.benchmark import baselines
from hebbkern.benchmark.contest import Case, Inputs, flat, forward_and_weight_gradient, images, shapes, weights


def part(index):
    """What a contestant's result is compared by, where hebbkern's operator returns more than the others."""
    return lambda result: flat(result[index] if isinstance(result, tuple) else result)


def compete_case(x_shape, w_shape, k):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        return i.contest(
            lambda: hk.ops.compete(i.x, i.w, k),
            lambda: baselines.numpy_compete(i.X64(), i.W64, k),
            lambda: baselines.eager_compete(i.X(), i.W, k),
            result=part(1),
        )

    return Case("compete", f"k = {k}, {shapes(x_shape, w_shape)}", build, "forward")


def match_case(x_shape, w_shape):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        return i.contest(
            lambda: hk.ops.nearest_patch(i.x, i.w),
            lambda: baselines.numpy_match(i.X64(), i.W64),
            lambda: baselines.eager_nearest_patch(i.X(), i.W),
            result=part(1),
        )

    return Case("nearest_patch", shapes(x_shape, w_shape), build, "forward")


def accumulate_case(x_shape, w_shape, k):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        taught, coefficients = hk.ops.compete(i.x, i.w, k)[0], torch.linspace(1, -0.4, k)
        wide, how_much = taught.long(), coefficients.double().numpy()
        who, K, kernel = wide.numpy(), w_shape[0], w_shape[2:]
        return i.contest(
            lambda: hk.ops.accumulate(i.x, taught, coefficients, neurons=K, kernel=kernel),
            lambda: baselines.numpy_accumulate(i.X64(), who, how_much, K),
            lambda: baselines.eager_accumulate(i.X(), wide, coefficients, K),
            result=part(0),
        )

    return Case("accumulate", f"{k} taught a patch, {shapes(x_shape, w_shape)}", build, "forward")


def sanger_case(x_shape, w_shape):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        return i.contest(
            lambda: hk.ops.dense_update(i.x, i.w),
            lambda: baselines.numpy_sanger_sum(i.W64, i.X64()),
            lambda: baselines.eager_sanger_sum(i.W, i.X()),
            forward_and_weight_gradient,
            result=part(0),
        )

    return Case("dense_update", shapes(x_shape, w_shape), build, "forward + weight gradient")


def apply_case(neurons, inputs, lr=0.02):
    def build():
        i = Inputs(weights(neurons, inputs), weights(neurons, inputs, scale=1.0))  # x is the update
        decay = torch.linspace(0, 1, neurons)
        decay64, start, idle = decay.double().numpy(), i.W.clone(), i.W.clone()

        def plain(W, sum, decay):
            step = sum - decay[:, None] * W
            W += lr * step / abs(step).max()

        return {
            "hebbkern": (
                lambda: hk.ops.apply_(i.w, i.x, decay=decay, lr=lr, normalise="global_max"),
                lambda _: i.w - start,
            ),
            "numpy": (lambda: plain(i.W64, i.x64, decay64), lambda _: torch.from_numpy(i.W64) - start),
            "eager": (lambda: plain(i.W, i.plain, decay), lambda _: i.W - start),
            "floor": (lambda: idle.add_(i.x, alpha=lr), None),
        }

    return Case("apply", f"global maximum, {neurons} x {inputs}", build, "weight.add_(sum)")


def kwinners_case(shape, k, **settings):
    def build():
        y = weights(*shape, scale=1.0)
        i = Inputs(y, y)
        plain, y64 = y.contiguous(), y.double().contiguous().numpy()
        compiled = torch.compile(baselines.eager_kwinners, dynamic=False)
        contest = i.contest(
            lambda: hk.ops.kwinners(y, k, 1),
            lambda: baselines.numpy_kwinners(y64, k),
            lambda: baselines.eager_kwinners(plain, k),
            lambda y, _: lambda: baselines.eager_kwinners(plain, k),
        )
        return contest | {"compiled eager": (lambda: compiled(plain, k), flat)}

    return Case("kwinners", f"k = {k} of {'x'.join(map(str, shape))}", build, "topk + scatter", **settings)
