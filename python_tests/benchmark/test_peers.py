"""The peers of the benchmark compute what the specification computes; the pictures and curves are drawn."""

import json
import re

import numpy as np
import pytest
import torch

import hebbkern as hk
from cases import random
from hebbkern import benchmark, reference
from hebbkern.benchmark import baselines, curves, peers, report, steps, timing
from hebbkern.benchmark.cases import CASES
from hebbkern.cli import bench

LINEAR = ((13, 11), (7, 11), {})
CONVOLUTIONS = [
    ((3, 5, 11, 9), (7, 5, 3, 2), {}),
    ((2, 3, 8, 9), (6, 3, 2, 3), {"stride": 2, "padding": 1}),
    ((2, 3, 9, 8), (5, 3, 2, 2), {"stride": 2, "padding": 2, "dilation": 3}),
]
LAYERS = [(name, *LINEAR) for name in peers.LINEAR] + [(n, *layer) for n in peers.CONVOLUTION for layer in CONVOLUTIONS]
RULES = ("krotov_hopfield", "wta", "sanger", "oja", "hebb", "soft_wta")


def peer_step(name, rule, x, w, geometry):
    form = peers.formulations(tuple(w.shape[2:]))[name](w.shape[2:], **geometry)
    moved = form.lay_out(w)
    peers.STEPS[rule](form, moved, x, 0.1)
    return moved.reshape(w.shape).numpy()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "x_shape", "w_shape", "geometry"), LAYERS, ids=str)
def test_every_formulation_agrees_with_the_reference(name, x_shape, w_shape, geometry, rule, monkeypatch):
    monkeypatch.setattr(peers.Broadcast, "CHUNK", 4 * 7 * 5 * 6 * 4)  # several chunks, and a last one that is smaller
    x, w = random(x_shape).abs(), 0.3 * random(w_shape, seed=1)
    want = getattr(reference, rule)(w.numpy(), x.numpy(), 0.1, **geometry)
    assert not np.allclose(want, w.numpy(), atol=1e-3)
    np.testing.assert_allclose(peer_step(name, rule, x, w, geometry), want, atol=1e-5)


def test_krotov_hopfield_with_other_settings():
    x, w = random((13, 11)), random((7, 11), seed=1)
    moved = w.clone()
    peers.krotov_hopfield(peers.Eager(), moved, x, 0.1, p=3.0, k=4, delta=0.2)
    np.testing.assert_allclose(moved, reference.krotov_hopfield(w, x, 0.1, p=3.0, k=4, delta=0.2), atol=1e-5)


@pytest.mark.parametrize("name", peers.LINEAR)
def test_hebbcl_freezes_and_normalises(name):
    x, w = random((13, 11)).abs(), random((7, 11), seed=1)
    distance = reference.nearest_patch(x, w)[1]
    winners = np.unique(reference.compete(x, w)[0])
    threshold = np.sort(distance[winners])[:2].mean()
    frozen = distance < threshold
    want = reference.wta(w, x, 0.1, similarity="dot", normalise="row_max", frozen=frozen)
    assert frozen[winners].any() and not frozen[winners].all()
    moved, wide = w.clone(), w.double().numpy()
    peers.hebbcl(peers.LINEAR[name](), moved, x, 0.1, threshold)
    baselines.numpy_hebbcl(wide, x.double().numpy(), 0.1, threshold)
    np.testing.assert_allclose(moved, want, atol=1e-5)
    np.testing.assert_allclose(wide, want, atol=1e-5)


def small_cases():
    linear, convolution = ((30, 25), (10, 25)), ((3, 3, 9, 8), (6, 3, 3, 3))
    return [
        steps.rule_case(hk.KrotovHopfield(), *linear, limits={"unscreened": 9e9}),
        steps.rule_case(hk.WTA(), *convolution),
        steps.rule_case(hk.Sanger(), *convolution, dense=True),
        steps.rule_case(hk.SoftWTA(), *convolution, dense=True),
        steps.rule_case(hk.Supervised(), *linear),
        steps.hebbcl_case(*linear),
        steps.epoch_case(60, 25, 10, 10, share=0.5),
    ]


@pytest.fixture
def uncompiled(monkeypatch):
    """The compiled implementations, without waiting for a compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(timing, "PAUSE", 0)
    timing.no_compiler.cache_clear()
    yield
    timing.no_compiler.cache_clear()


@pytest.mark.parametrize("case", small_cases(), ids=lambda case: case.id)
def test_every_implementation_is_in_the_row(case, uncompiled):
    row = timing.measure(case, rounds=1, peers=True)
    forms = peers.CONVOLUTION if "x3x" in case.name else ["eager"] if "epoch" in case.name else peers.LINEAR
    unscreened = {"unscreened"} & set(case.limits)
    wanted = {"hebbkern", "numpy", *forms, *(f"compiled {name}" for name in forms), *unscreened}
    assert set(row["to_forward"]) == wanted and all(row["holds"].values())
    usual = timing.measure(case, rounds=1)
    assert set(usual["to_forward"]) == {"hebbkern", "numpy", "eager", *unscreened}


def test_the_time_of_a_share_counts_in_full(uncompiled, monkeypatch):
    monkeypatch.setattr(timing, "race", lambda runs, rounds: dict.fromkeys(runs, 2.0))
    seconds = timing.measure(steps.epoch_case(60, 25, 10, 10, share=0.5), rounds=1)["seconds"]
    assert seconds == {"hebbkern": 2.0, "numpy": 4.0, "eager": 4.0, "forward": 2.0}


@pytest.mark.parametrize("name", peers.CONVOLUTION)
def test_a_wrong_formulation_is_caught(name, uncompiled, monkeypatch):
    class Wrong(peers.CONVOLUTION[name]):
        def decayed_sum(self, *inputs):
            return 1.01 * super().decayed_sum(*inputs)

    monkeypatch.setitem(peers.CONVOLUTION, name, Wrong)
    case = steps.rule_case(hk.WTA(), (3, 3, 9, 8), (6, 3, 3, 3))
    with pytest.raises(AssertionError, match=rf": {name} differs from NumPy by 1\.\de-02 of its norm"):
        timing.measure(case, rounds=1, peers=True)


@pytest.mark.slow(23)
def test_compiled_peers_agree():
    if timing.no_compiler():
        pytest.skip(timing.no_compiler())
    case = steps.rule_case(hk.WTA(), (3, 3, 9, 8), (6, 3, 3, 3))
    with torch.no_grad():
        implementations = case.build()
        some = {name: implementations[name] for name in ("numpy", "compiled eager", "compiled broadcast")}
        timing.check_agreement(case, some)


def test_where_nothing_compiles_the_compiled_are_left_out(monkeypatch):
    monkeypatch.setattr(timing, "no_compiler", lambda: "RuntimeError: no compiler")
    implementations = {"hebbkern": 1, "compiled eager": 2, "swap": 3, "forward": 4}
    assert set(timing._selected(implementations, peers=True)) == {"hebbkern", "swap", "forward"}


def test_the_table_of_the_issue_is_measured():
    """Every work that has a figure to reach is among the peers, and every peer of its kind with it."""
    names = " | ".join(case.id for case in CASES if case.peers)
    for work in ("1024 x 784 x 2000", "1024 x 3072 x 2000", "60000 x 784", "64 x 2304 x 4096", "10000x500", "HebbCL"):
        assert work in names
    assert len(re.findall(r"WTA step, 64x", names)) == 5 and len(re.findall(r"Sanger step, 64x", names)) == 4


def test_command_writes_table_and_picture(uncompiled, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(benchmark, "CASES", [steps.rule_case(*small, peers=True) for small in SMALL])
    for name in ("memory", "overhead", "scaling", "determinism"):
        monkeypatch.setattr(benchmark.properties, name, lambda *_: [])
    page, drawn = tmp_path / "README.md", tmp_path / "peers.png"
    start, end = report.marks(" --peers")
    page.write_text(f"a\n{start}\n{end}\nb\n")
    written = ["--json", str(tmp_path / "peers.json"), "--picture", str(drawn), "--markdown", str(page)]
    assert bench.main(["--peers", "--rounds", "1", *written]) == 0
    table = page.read_text()
    assert "](peers.png)" in table and table.endswith("\nb\n")
    assert json.loads((tmp_path / "peers.json").read_text())["command"].startswith("hebbkern bench --peers --rounds 1 ")
    for name, label in report.LABELS.items():
        assert (label in table) == (name != "unscreened")
    assert re.search(r"\| WTA step, 3x3x9x8 to 6 \(3x3\) \| \d+ µs \|", table) and table.count("(") > 10
    assert b"PNG" in drawn.read_bytes()[:4] and drawn.stat().st_size < 300_000
    assert capsys.readouterr().out


SMALL = [
    (hk.WTA(), (3, 3, 9, 8), (6, 3, 3, 3)),
    (hk.KrotovHopfield(), (30, 25), (10, 25)),
]


def test_losses_are_said():
    row = {"case": "rules: a", "to_forward": {"hebbkern": 2.0, "numpy": 1.0}}
    won = {"case": "rules: b", "to_forward": {"hebbkern": 1.0, "unscreened": 0.5, "numpy": 2.0}}
    assert report.losses([row, won]) == [
        "Another implementation is faster than hebbkern in: a (2.00 x the time of numpy)."
    ]


def test_curves_have_slopes_and_a_picture(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(curves, "step_seconds", lambda rule, x, w, rounds: 1e-9 * np.prod(x) * w[0])
    monkeypatch.setattr(curves.properties, "rise", lambda rule, x, w: float(x[0]))
    found = benchmark.about() | curves.run(1)
    slopes = {(row["rule"], row["axis"]): row["slope"] for row in found["rows"]}
    assert slopes["KrotovHopfield", "patches"] == pytest.approx(1) and slopes["WTA", "neurons"] == pytest.approx(1)
    assert slopes["Sanger", "batch, memory"] == pytest.approx(1) and len(slopes) == 14
    assert "WTA              neurons        32: " in curves.text(found)
    page, (start, end) = tmp_path / "speed.md", report.marks(" --curves")
    page.write_text(f"{start}\n{end}")
    drawn = tmp_path / "curves.png"
    assert bench.main(["--curves", "--rounds", "1", "--picture", str(drawn), "--markdown", str(page)]) == 0
    assert (
        "](curves.png)" in page.read_text() and "| KrotovHopfield | 1.00 | 1.00 | 1.00 |  | 1.00 |" in page.read_text()
    )
    assert drawn.stat().st_size < 300_000 and capsys.readouterr().out


@pytest.mark.slow(8)
def test_a_step_of_a_curve_and_its_memory():
    assert 0 < curves.step_seconds("WTA", *curves.convolution(), rounds=1) < 60
    rise = benchmark.properties.rise("Sanger", *curves.convolution())
    assert rise is None or 0 <= rise < 64


def test_properties_have_limits(monkeypatch):
    small = ((hk.WTA(), ((20, 9), (8, 9))),)
    monkeypatch.setattr(benchmark.properties, "LARGE", small)
    threads = torch.get_num_threads()
    rows = benchmark.properties.scaling(1) + benchmark.properties.overhead(1)
    assert torch.get_num_threads() == threads
    assert [row["limit"] for row in rows] == [1.7, 25] and all(report.sentence(row) for row in rows)
