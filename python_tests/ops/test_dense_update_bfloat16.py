"""dense_update of bfloat16: two images, two inputs or two neurons at a time, and what is left over of any."""

import os
import subprocess
import sys

import pytest
import torch

import calls
import cases
import hebbkern as hk
import oracle
from test_dense_update import RULES, name, scaled

MANY_PATCHES = [  # odd numbers of inputs, neurons, samples, images and places
    cases.Layer((1301, 37), (53, 37)),
    cases.Layer((3001, 24), (32, 24)),
    cases.Layer((1, 3, 41, 45), (20, 3, 5, 3)),
    cases.Layer((3, 1, 29, 27), (9, 1, 3, 3), {"dilation": (1, 2)}),
    cases.Layer((5, 7, 23, 27), (49, 7, 3, 2), {"stride": (1, 2), "padding": (2, 1)}),
    cases.Layer((2, 16, 31, 33), (97, 16, 2, 2), {"dilation": 3, "padding": 1}),
]
FEW_PATCHES = [  # fewer than neurons, where the residual's order is
    cases.Layer((1, 1), (1, 1)),
    cases.Layer((64, 257), (701, 257)),
    cases.Layer((3, 65), (131, 65)),
    cases.Layer((17, 1202), (333, 1202)),
    cases.Layer((3, 5, 7, 6), (257, 5, 3, 3), {"padding": 1}),
    cases.Layer((2, 20, 4, 4), (99, 20, 3, 3), {"stride": 2}),
    cases.Layer((1701, 49), (301, 49)),
]
LAYERS = MANY_PATCHES + FEW_PATCHES


@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_sums(backend, layer, rule):
    x, weight = scaled(layer, torch.bfloat16, backend.device)
    frozen = cases.some(layer.neurons, backend.device)
    options = {**rule, **layer.geometry}
    plain = hk.ops.dense_update(x, weight, **options)
    oracle.check_dense_update(plain, x, weight, **options)
    total, _ = hk.ops.dense_update(x, weight, frozen=frozen, **options)
    assert not total[frozen].any() and torch.equal(total[~frozen], plain[0][~frozen])


@pytest.mark.slow(9, on="triton")
@pytest.mark.parametrize("share", [1.0, 0.02])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_integers_are_exact(backend, layer, share):
    """As long as nothing that is rounded exceeds 256, nor a sum 2^24: with few patches the residual would."""
    if layer in FEW_PATCHES and share == 1:
        pytest.skip("its residual exceeds 256")
    x = cases.integers(layer.x, -1, 1, torch.bfloat16, backend.device)
    weight = cases.integers(layer.weight, -1, 1, torch.bfloat16, backend.device, seed=1)
    x *= cases.some(x.shape, backend.device, seed=2, share=share)
    weight *= cases.some(weight.shape, backend.device, seed=3, share=share)
    for rule in (rule for rule in RULES if rule["activation"] in ("linear", "relu")):
        got, _ = hk.ops.dense_update(x, weight, **rule, **layer.geometry)
        want, _ = hk.reference.dense(oracle.exact(x), oracle.exact(weight), **rule, **layer.geometry)
        assert (oracle.exact(got) == want).all()


@pytest.mark.parametrize("layer", [LAYERS[0], *LAYERS[2:]], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts_have_the_same_bits(backend, layer, layout):
    x, weight = scaled(layer, torch.bfloat16, backend.device)
    want = hk.ops.dense_update(x, weight, **layer.geometry)
    got = hk.ops.dense_update(cases.laid_out(x, layout), cases.laid_out(weight, layout), **layer.geometry)
    assert backend.name != "cpu" or calls.same_bits(want, got)
    oracle.check_dense_update(got, x, weight, **layer.geometry)


def test_any_number_of_threads_has_the_same_bits(backend, threads):
    if backend.name != "cpu":
        pytest.skip("the other backends run no code of their own for bfloat16 here")
    for layer in LAYERS:
        for rule in RULES:
            x, weight = scaled(layer, torch.bfloat16)
            runs = []
            for count in (1, *backend.threads):
                threads(count)
                runs.append(hk.ops.dense_update(x, weight, **rule, **layer.geometry))
            assert all(calls.same_bits(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[4], FEW_PATCHES[1], FEW_PATCHES[5]], ids=str)
def test_bad_numbers_are_refused(backend, layer, bad):
    for which in ("x", "weight"):
        for place in (0, -1):
            given = dict(zip(("x", "weight"), scaled(layer, torch.bfloat16, backend.device), strict=True))
            given[which].view(-1)[place] = bad
            with calls.refused(backend.device, f"hebbkern.dense_update: {which} must be finite"):
                hk.ops.dense_update(**given, **layer.geometry)


def test_an_overflow_is_refused(backend):
    """Of a response, and of a sum of which each response is finite."""
    for layer in (LAYERS[0], FEW_PATCHES[1]):
        for size in (1e30, 1e18):
            x, weight = (tensor.abs() * size for tensor in scaled(layer, torch.bfloat16, backend.device))
            with calls.refused(backend.device):
                hk.ops.dense_update(x, weight)


def test_responses_are_rounded_once_and_to_nearest():
    """y = 1 + 2^-8 + 2^-20 is above the middle of 1 and 1 + 2^-7, its neighbours; 1 + 2^-8 is a tie."""
    unit = oracle.rounds_responses(torch.zeros(1, dtype=torch.bfloat16), "raw")
    weight = torch.tensor([[1.0, 2.0**-8, 2.0**-20, 0.0], [1.0, 2.0**-8, 0.0, 0.0]]).bfloat16()
    for patches in (16, 2000):
        x = torch.ones(patches, 4).bfloat16()
        total, _ = hk.ops.dense_update(x, weight, activation="linear", decay="none")
        assert not unit or total[:, 3].tolist() == [patches * (1 + 2.0**-7), patches]


SAYS = """
import torch, hebbkern as hk
from hebbkern import _cpu
import cases
from test_dense_update_bfloat16 import LAYERS, RULES, scaled
assert _cpu.pair_unit == "", _cpu.pair_unit
for layer in LAYERS:
    for rule in RULES:
        x, weight = scaled(layer, torch.bfloat16)
        options = {**rule, **layer.geometry}
        got, want = hk.ops.dense_update(x, weight, **options), hk.ops.dense_update(x.float(), weight.float(), **options)
        assert torch.equal(got[0], want[0]), (str(layer), rule)
print(_cpu.isa)
"""


@pytest.mark.slow(10)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_without_the_instructions_products_are_those_of_float32(isa):
    if reason := hk.backends.available()["cpu"]:
        pytest.skip(f"no compiled CPU kernels: {reason}")
    environment = os.environ | {"HEBBKERN_CPU": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", SAYS], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr[-4000:]
