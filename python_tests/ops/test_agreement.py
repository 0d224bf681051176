"""Numbers from 1e-45 to 3e38, zeros and masks: plain torch and the CPU's kernels refuse, and answer, the same."""

import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import calls
import hebbkern as hk
import oracle
from cases import random

SIZES = [0.0, *(10.0**e for e in (-45, -42, -40, -38, -37, -30, -20, -10, -3, 0, 0, 0, 3, 10, 15, 18)), 3e18]
HUGE = [1e19, 1e20, 1e25, 1e30, 2e30, 1e36, 1e38, 3e38]
MOST = torch.finfo(torch.float32).max
PATTERNS = ["normal", "constant", "signs", "mixed"]


@st.composite
def numbers(draw, shape, sizes):
    """float32 of one size, or of several."""
    pattern, size = draw(st.sampled_from(PATTERNS)), draw(st.sampled_from(sizes))
    if pattern == "constant":
        return torch.full(shape, size)
    drawn = random(shape, torch.float64, seed=draw(st.integers(0, 999)))
    if pattern == "mixed":
        places = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=3, max_size=3))
        size = torch.tensor([sizes[place] for place in places], dtype=torch.float64)
        size = size.repeat(math.ceil(math.prod(shape) / 3))[: math.prod(shape)].view(shape)
    return ((drawn.sign() if pattern == "signs" else drawn.clamp(-1, 1)) * size).clamp(-MOST, MOST).float()


@st.composite
def operator_calls(draw, sizes):
    """An operator's name and its arguments."""
    name = draw(st.sampled_from(calls.OPERATORS))
    patches, inputs = draw(st.sampled_from([1, 3, 7])), draw(st.sampled_from([1, 2, 6, 33]))
    neurons = draw(st.sampled_from([2, 4, 19]))
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    some = lambda *shape: draw(numbers(shape, sizes))  # noqa: E731
    maybe = lambda *shape: some(*shape) if draw(st.booleans()) else None  # noqa: E731
    mask = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=neurons, max_size=neurons)))
    mask = None if mask is None else torch.tensor(mask)
    x, weight, how = some(patches, inputs), some(neurons, inputs), {"patches": pick("raw", "raw", *hk.checks.PATCHES)}
    lr = pick(0.5, -0.1, *sizes)
    cosine = draw(st.booleans())
    contest = {"k": pick(1, 2), "cosine": cosine, "p": 2.0 if cosine else pick(1.0, 2.0, 2.5, 3.0)}
    named = torch.tensor(draw(st.lists(st.integers(-1, neurons - 1), min_size=patches, max_size=patches)))
    dense = {"activation": pick("linear", "relu", "tanh"), "decay": pick(*hk.checks.DECAYS), "frozen": mask}
    scale = {"normalise": pick(*hk.checks.NORMALISATIONS), "frozen": mask}
    return name, {
        "compete": lambda: {"x": x, "weight": weight, **contest, "eligible": mask, **how},
        "nearest_patch": lambda: {"x": x, "weight": weight, "eligible": mask, **how},
        "accumulate": lambda: {
            "x": x,
            "targets": named[:, None].int(),
            "coefficients": some(patches, 1),
            "neurons": neurons,
            "responses": maybe(patches, 1),
            "frozen": mask,
            **how,
        },
        "dense_update": lambda: {"x": x, "weight": weight, **dense, **how},
        "dense_step_": lambda: {"x": x, "weight": weight, "lr": lr, **dense, **how},
        "apply_": lambda: {
            "weight": weight,
            "sum": some(neurons, inputs),
            "decay": maybe(neurons),
            "lr": lr,
            **scale,
            "denominator": maybe(pick(1, neurons)),
            "rate_power": pick(0.0, 0.5, 1.0, 2.0),
        },
        "kwinners": lambda: {"y": weight, "k": pick(1, 2), "dim": 1},
        "winner_step_": lambda: {
            "x": x,
            "weight": weight,
            "lr": lr,
            **contest,
            "coefficients": (1.0, -0.4)[: contest["k"]],
            **scale,
            "by_response": pick(True, False),
            "average": pick(True, False),
            **how,
        },
    }[name]()


def answer(backend, name, arguments):
    """The results of a call, or None where it is refused."""
    before = arguments["weight"].clone() if "weight" in arguments else None
    with hk.backend(backend):
        try:
            return calls.run(name, arguments)
        except ValueError as error:
            assert str(error).startswith("hebbkern.")
            return None
        finally:
            assert before is None or calls.same_bits([before], [arguments["weight"]])


def folds(name, arguments):
    """Whether the kernels, which subtract a patch's mean from its products, leave float32 where plain torch does not.

    docs/limits.md says so.
    """
    if arguments.get("patches", "raw") == "raw" or "weight" not in arguments:
        return False
    x, weight = arguments["x"].double().abs(), arguments["weight"].double().abs() ** (arguments.get("p", 2.0) - 1)
    longest = max(1.0, x.max()) * max(1.0, weight.max(), x.max() if name == "nearest_patch" else 0)
    return longest * x.numel() > MOST / 100


def at_the_edge(name, arguments, refused):
    """Whether numbers 256 times smaller or larger are refused otherwise: the order of a sum may decide then."""
    for key, value in arguments.items():
        if key == "lr" or (isinstance(value, torch.Tensor) and value.is_floating_point()):
            for factor in (2.0**-8, 2.0**8):
                other = (value * factor).clamp(-MOST, MOST) if isinstance(value, torch.Tensor) else value * factor
                if (answer("eager", name, {**arguments, key: other}) is None) != refused:
                    return True
    return False


@pytest.fixture
def compiled():
    if reason := hk.backends.available()["cpu"]:
        pytest.skip(reason)
    with np.errstate(all="ignore"):
        yield


@hypothesis.settings(max_examples=150)
@hypothesis.given(operator_calls(SIZES + HUGE))
def test_backends_refuse_the_same_numbers(compiled, call):
    name, arguments = call
    if folds(name, arguments):
        return
    ours, theirs = (answer(backend, name, arguments) is None for backend in ("cpu", "eager"))
    assert ours == theirs or at_the_edge(name, arguments, theirs)


MODERATE = [0.0, 1e-10, 1e-7, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e7]


@hypothesis.settings(max_examples=60)
@hypothesis.given(operator_calls(MODERATE))
def test_backends_agree_with_the_reference_where_sizes_differ(compiled, call):
    name, arguments = call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle, "left_out", lambda operator, near, unit: near(1))  # ties abound: any number of them
        check(name, arguments)


def check(name, arguments):
    """Both backends' results are within the bounds of their rounding."""
    for backend in ("cpu", "eager"):
        got = answer(backend, name, arguments)
        if got is None or name in ("dense_step_", "winner_step_"):  # these are the others in one
            continue
        if name == "kwinners":
            want = hk.reference.kwinners(oracle.exact(arguments["y"]), arguments["k"], arguments["dim"])
            assert torch.equal(got[0].double(), torch.tensor(want))
        elif name == "apply_":
            oracle.check_apply(got[0], **arguments)
        else:
            getattr(oracle, f"check_{name}")(got, **arguments)
