"""examples.papers.hebbian_cnn.softhebb with few filters, on small made-up images."""

import math
from dataclasses import replace

import pytest
import torch

import hebbkern as hk

pytest.importorskip("tqdm", reason="tqdm is not installed")

from examples.papers.common.held_out import HeldOutData
from examples.papers.common.readouts import Schedule
from examples.papers.hebbian_cnn import network, softhebb
from examples.papers.hebbian_cnn.network import set_statistics
from hebbkern.nn.learning import hebbian_layers

CLASSES, TEST_IMAGES = 3, 24
SMALL = replace(
    softhebb.FAST,
    stages=tuple(
        replace(stage, channels=channels) for stage, channels in zip(softhebb.STAGES, (6, 8, 12), strict=True)
    ),
    settled=30,
    readouts=tuple(Schedule(rate=rate, epochs=3, batch=16) for rate in (1e-3, 1e-2)),
)


def images(count, seed=0):
    """16x16, in colour: each class has a bar of its own, among noise."""
    generator = torch.Generator().manual_seed(seed)
    x, y = 0.3 * torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % CLASSES
    x[torch.arange(count), y, 4 + 3 * y] += 0.7
    return x, y


@pytest.fixture
def data():
    return HeldOutData(*images(60), *images(TEST_IMAGES, seed=1))


def lengths(model):
    return {name: layer.weight.flatten(1).norm(dim=1) for name, layer in hebbian_layers(model).items()}


@pytest.mark.parametrize("power", [0.7, 1.0, 1.4])
def test_the_triangle_is_its_formula(power):
    u = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = softhebb.Triangle(power)(u)
    for b, i, j in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        values = [float(u[b, c, i, j]) for c in range(5)]
        want = [max(value - sum(values) / 5, 0.0) ** power for value in values]
        assert got[b, :, i, j].tolist() == pytest.approx(want, rel=1e-12)


def test_the_network_is_the_papers():
    """The authors' network: 96, 384, 1536 filters of sides 5, 3, 3; 24576 features of 32x32 images."""
    model = softhebb.build(softhebb.Plan())
    convs = list(hebbian_layers(model).values())
    assert [tuple(conv.weight.shape) for conv in convs] == [(96, 3, 5, 5), (384, 96, 3, 3), (1536, 384, 3, 3)]
    assert [conv.padding_mode for conv in convs] == ["reflect"] * 3
    assert [1 / conv.rule.temperature for conv in convs] == pytest.approx([1.0, 0.65, 0.25])
    assert {(conv.rule.rate_power, conv.rule.normalise) for conv in convs} == {(0.5, "global_max")}
    for conv in convs:
        spread = conv.weight.std().item() * math.sqrt(conv.weight[0].numel())
        assert spread == pytest.approx(25, rel=5 / math.sqrt(2 * conv.weight.numel()))
    shapes, x = [], torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for name, part in model.eval().named_children():
            x = part(x)
            if name.startswith("pool"):
                shapes.append(tuple(x.shape[1:]))
    assert shapes == [(96, 16, 16), (384, 8, 8), (1536, 4, 4)] and x.shape == (2, 24576)


def test_learning_takes_lengths_towards_one():
    x, _ = images(60)
    model = softhebb.build(SMALL)
    before = lengths(model)
    softhebb.learn(model, x, SMALL)
    after = lengths(model)
    assert list(after) == ["conv1", "conv2", "conv3"]
    for name in after:
        assert (after[name] - 1).abs().mean() < (before[name] - 1).abs().mean()


def test_a_step_is_the_rules_on_what_each_layer_sees():
    """One batch: each layer by the reference, on the answer of the layers before it with their new weights."""
    x, _ = images(8)
    model, twin = softhebb.build(SMALL).double(), softhebb.build(SMALL).double()
    x = x.double()
    softhebb.learn(model, x, replace(SMALL, batch=8))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    h, twin = x[order], twin.train()
    for number, stage in enumerate(SMALL.stages, 1):
        conv = twin.get_submodule(f"conv{number}")
        h = twin.get_submodule(f"norm{number}")(h)
        padded = torch.nn.functional.pad(h, [stage.side // 2] * 4, mode="reflect")
        settings = {"temperature": 1 / stage.inverse, "normalise": "global_max"}
        want = hk.reference.soft_wta(conv.weight.detach().numpy(), padded.numpy(), lr=stage.rate, **settings)
        got = model.get_submodule(f"conv{number}").weight
        torch.testing.assert_close(got.detach(), torch.from_numpy(want), rtol=1e-9, atol=1e-9)
        conv.weight.copy_(torch.from_numpy(want))
        h = twin.get_submodule(f"pool{number}")(twin.get_submodule(f"triangle{number}")(conv(h)))


def test_statistics_are_those_of_the_images():
    x, _ = images(40)
    model = softhebb.build(SMALL)
    set_statistics(model, x)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model.norm1.running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model.norm1.running_var, x.var(dim=(0, 2, 3)), rtol=1e-4, atol=0)


def test_features_are_what_the_network_answers(monkeypatch):
    monkeypatch.setattr(network, "CHUNK", 3)
    x, _ = images(7)
    model = softhebb.build(SMALL)
    set_statistics(model, x)
    got = softhebb.outputs(model, x)
    assert got.dtype == torch.bfloat16 and got.shape == (7, 12 * 2 * 2)
    with torch.no_grad():
        want = model(x)
    torch.testing.assert_close(got.float(), want, rtol=0, atol=0.05 * want.abs().max().item())


def trial(x, y, kind):
    return softhebb.Trial(SMALL, x, y, kind=kind, seed=1)


def test_random_filters_stay_as_drawn_and_learnt_ones_start_there():
    x, y = images(30)
    drawn = softhebb.build(SMALL, seed=1)
    random, learnt = trial(x, y, "random").model, trial(x, y, "learnt").model
    for name in ("conv1", "conv2", "conv3"):
        assert torch.equal(random.get_submodule(name).weight, drawn.get_submodule(name).weight)
        assert not torch.equal(learnt.get_submodule(name).weight, drawn.get_submodule(name).weight)
    assert not torch.equal(drawn.conv1.weight, softhebb.build(SMALL, seed=2).conv1.weight)


def test_features_are_read_out_less_their_mean_by_their_deviation():
    features = trial(*images(60), "random").x.float()
    assert features.mean(dim=0).abs().max() < 0.02 and features.std().item() == pytest.approx(1, abs=0.01)


def test_two_runs_give_the_same_bits():
    one, other = (trial(*images(30), "learnt") for _ in range(2))
    assert torch.equal(one.x, other.x)
    assert one.choose() == other.choose()


def test_a_run_chooses_on_validation_images_and_opens_the_test_set_once_a_row(data, monkeypatch):
    measured, measure = [], softhebb.measure
    monkeypatch.setattr(softhebb, "measure", lambda model, x, y: measured.append(len(y)) or measure(model, x, y))
    fitted, fit = [], softhebb.fit
    monkeypatch.setattr(
        softhebb, "fit", lambda m, x, y, plans, seed: fitted.append(len(y)) or fit(m, x, y, plans, seed=seed)
    )
    results = list(softhebb.run(data, plan=SMALL, seeds=[0, 1]))
    assert [(result.kind, result.seed) for result in results] == [(k, s) for s in (0, 1) for k in ("learnt", "random")]
    assert measured == [12, TEST_IMAGES] * 4 and fitted == [48, 60] * 4
    for result in results:
        assert result.readout in SMALL.readouts
        assert result.validation > 100 / CLASSES and result.test > 100 / CLASSES


def test_what_is_learnt_is_kept(data, monkeypatch):
    kept = {}

    def keep(key, make):
        if key not in kept:
            kept[key] = {name: part.clone() for name, part in make().items()}
        return kept[key]

    first = list(softhebb.run(data, plan=SMALL, seeds=[0, 1], keep=keep))
    assert len(kept) == 2, "of a seed what has learnt, not what is drawn"
    monkeypatch.setattr(softhebb, "learn", lambda *arguments, **options: pytest.fail("it has learnt before"))
    again = HeldOutData(data.x, data.y, data.x_test, data.y_test)
    assert list(softhebb.run(again, plan=SMALL, seeds=[0, 1], keep=keep)) == first
    with pytest.raises(pytest.fail.Exception, match="it has learnt before"):
        list(softhebb.run(again, plan=replace(SMALL, length=5.0), seeds=[0], keep=keep))


def test_a_fast_run(data):
    (learnt, random) = softhebb.run(data, fast=True, seeds=[0])
    assert (learnt.kind, random.kind) == softhebb.KINDS and learnt.readout.epochs < 20
