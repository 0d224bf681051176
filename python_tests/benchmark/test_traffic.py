"""The bytes that bench/gpu_report/triton_traffic.py describes are those that kernels read and write, counted."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from hebbkern import backends
from hebbkern.backends import dense

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from triton.runtime import interpreter

import hebbkern as hk
from gpu_report import timing, triton_traffic, variants, workloads
from hebbkern.backends.triton.launch import INTERPRETED, name_of

pytestmark = pytest.mark.skipif(
    not INTERPRETED.value or bool(backends.available()["triton"]), reason="counts in Triton's interpreter"
)
LINEAR, FEW, CHIP = ((150, 200), (90, 200)), ((70, 200), (260, 200)), ((200, 40), (30, 40))
IMAGES = ((6, 8, 9, 9), (40, 8, 3, 3))
CENTRED = {"patches": "centred"}
WORK = [
    variants.competed(LINEAR, 2),
    variants.competed(LINEAR, 2, False, {"patches": "standardised", "cosine": False}),
    variants.competed(LINEAR, 2, False, CENTRED, dtype=torch.bfloat16),
    variants.competed(LINEAR, 1, screened="always"),
    variants.competed(IMAGES, 1),
    variants.matched(LINEAR),
    variants.matched(IMAGES, False, CENTRED),
    variants.accumulated(LINEAR, "centred", 150),
    variants.stepped(hk.KrotovHopfield(), LINEAR),
    variants.stepped(hk.WTA(normalise="row_l2"), IMAGES),
    variants.applied(LINEAR, "global_max"),
    variants.applied(LINEAR, "row_max", 0.5),
    variants.stepped(hk.Sanger(), LINEAR),
    variants.stepped(hk.Sanger(), FEW),
    variants.stepped(hk.Sanger(), CHIP),
    variants.stepped(hk.Oja(), IMAGES),
    variants.stepped(hk.SoftWTA(), LINEAR),
    variants.sparsened((40, 300)),
    variants.sparsened((4, 30, 5, 4)),
    variants.sparsened((2, 20_000)),
]


@pytest.fixture
def counted(monkeypatch):
    """[(launch, bytes that it loaded and stored)] of what runs in the interpreter."""
    launches, moved = [], [0]
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__

    def add(pointers, mask):
        moved[0] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8

    def counting_load(self, pointers, mask, *rest):
        add(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        add(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counting_call(self, *arguments, **settings):
        moved[0] = 0
        call(self, *arguments, **settings)
        kernel = SimpleNamespace(fn=self.fn, arg_names=self.arg_names)
        named = {name: value for name, value in settings.items() if name in self.arg_names}
        launch = SimpleNamespace(kernel=kernel, grid=self.grid, arguments=arguments, settings=named)
        launches.append((launch, moved[0]))

    monkeypatch.setattr(builder, "create_masked_load", counting_load)
    monkeypatch.setattr(builder, "create_masked_store", counting_store)
    monkeypatch.setattr(executor, "__call__", counting_call)
    return launches


@pytest.mark.parametrize("few", [False, True], ids=["", "residual"])  # the order that small layers do not choose
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.id)
def test_a_launch_moves_what_its_description_says(work, few, counted, monkeypatch):
    if few:
        monkeypatch.setattr(dense, "residual_is_cheaper", lambda P, K, N: P < K)
    x, w, extra = timing.inputs(work, "cpu")
    with workloads.settings_of(work), hk.backend("triton"):
        work.run(x, w, **extra)
    assert counted
    for launch, moved in counted:
        described, name = triton_traffic.use(launch).cache, name_of(launch.kernel)
        named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))
        if named.get("starts") is None and "bounds" not in named:
            assert described == pytest.approx(moved, rel=0.05, abs=1000), name
        else:  # the data decides: rows that learn from no patch and neurons that cannot win are left out
            assert described * 1.05 >= moved, name
