"""Handlers: the figures of a training, its pictures and TensorBoard's files, and that they change nothing."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random

engines = pytest.importorskip("ignite.engine", reason="pytorch-ignite is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

handlers = pytest.importorskip("hebbkern.training.handlers")
ProgressBar = pytest.importorskip("ignite.handlers").ProgressBar

SAMPLE = random((5, 1, 6, 6), seed=7)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        hk.nn.HebbianConv2d(1, 6, 3, rule=hk.WTA(patches="centred")),
        nn.BatchNorm2d(6),
        nn.Dropout(0.5),
        nn.Flatten(),
        hk.nn.HebbianLinear(96, 8, rule=hk.KrotovHopfield(p=3.0)),
        hk.nn.HebbianLinear(8, 3, rule=hk.Teacher()),
    )


def trainer(model, lr=0.1):
    """A bare loop: what stands in hebbkern.training is tested elsewhere."""

    def step(engine, batch):
        with torch.no_grad(), hk.learning(model, lr=lr, labels=batch[1]):
            model(batch[0])

    return engines.Engine(step)


def data():
    return [(random((10, 1, 6, 6), seed=seed), torch.arange(10) % 3) for seed in range(4)]


def every_handler(model):
    return [
        handlers.Figures(model),
        handlers.WeightPictures(model),
        handlers.Convergence(model),
        handlers.WeightHistograms(model),
        handlers.Winners(model, SAMPLE),
        handlers.Activations(model, SAMPLE, ["0", "1", "4"]),
    ]


def test_a_training_has_the_same_bits_with_and_without_them(tmp_path):
    bare, watched = network(), network()
    writer = tensorboard(tmp_path / "events")
    ends = []
    for model in (bare, watched):
        engine = trainer(model)
        if model is watched:
            for handler in every_handler(model):
                handler.attach(engine, folder=tmp_path / "pictures", writer=writer)
        torch.manual_seed(1)
        engine.run(data(), max_epochs=3)
        ends.append(torch.get_rng_state())
    writer.close()
    assert torch.equal(*ends) and bare[2].training and watched[2].training
    state = watched.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in bare.state_dict().items())
    assert not torch.equal(bare[0].weight, network()[0].weight)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())
    names = {"weights_0", "weights_4", "weights_5", "convergence", "histograms", "winners", "activations"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{name}.png" for name in names}
    assert all(path.stat().st_size < 300_000 for path in (tmp_path / "pictures").iterdir())
    check_events(tmp_path / "events", names, watched)


def tensorboard(folder):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    return handlers.tensorboard(folder)


def check_events(folder, pictures, model):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert set(tags["images"]) == pictures and set(tags["histograms"]) == {"weights/0", "weights/4", "weights/5"}
    assert {"dead/0", "change/4", "converged/4", "winless/0", "sparseness/1"} <= set(tags["scalars"])
    for tag in pictures:
        drawn = events.Images(tag)
        assert [event.step for event in drawn] == [1, 2, 3]
        assert np.asarray(image.open(io.BytesIO(drawn[-1].encoded_image_string)).convert("RGB")).std() > 5
    histogram = events.Histograms("weights/4")[-1].histogram_value
    weight = model[4].weight.double()
    assert (histogram.num, histogram.max) == (768, pytest.approx(weight.max().item()))
    assert histogram.sum == pytest.approx(weight.sum().item(), rel=1e-4, abs=1e-4)


def test_figures_count_updates_the_unmoved_and_the_change():
    layer = hk.nn.HebbianLinear(2, 5, rule=hk.WTA(similarity="dot"))
    # x = (1, 0) is won by neuron 0 alone, (0, 1) by neuron 1; neurons 2 to 4 never win, 4 is frozen.
    layer.weight.data = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [-2.0, -1.0], [-3.0, -3.0]])
    layer.frozen[4] = True
    still = hk.nn.HebbianLinear(5, 4, rule=hk.WTA())
    still.frozen[:] = True
    model = nn.Sequential(layer, still)
    engine, seen = trainer(model, lr=0.5), []
    handlers.Figures(model).attach(engine)
    engine.add_event_handler(engines.Events.EPOCH_STARTED, lambda e: seen.append(dict(e.state.metrics)))
    engine.add_event_handler(engines.Events.EPOCH_COMPLETED, lambda e: seen.append(dict(e.state.metrics)))
    labels = torch.zeros(2, dtype=torch.int64)
    engine.run([(torch.eye(2), labels), (torch.eye(2)[:1].repeat(2, 1), labels)], max_epochs=2)
    # Neuron 0: 2 → 1.5 → 1.25 → 1.125 → 1.0625; neuron 1: 2 → 1.5, then 1.25.
    assert seen[0] == {"updates": 0, "dead": 0, "change": 0}
    assert seen[1] == {"updates": 2, "dead": 2, "change": pytest.approx((0.75 + 0.5) / 10)}
    assert seen[3] == {"updates": 4, "dead": 2, "change": pytest.approx((0.1875 + 0.25) / 10)}


def test_a_progress_bar_shows_the_figures(capsys):
    model = network()
    engine = trainer(model)
    handlers.Figures(model).attach(engine)
    bar = ProgressBar(persist=True, file=sys.stdout, disable=False, ncols=120)
    bar.attach(
        engine, metric_names=["updates", "dead", "change"],
        event_name=engines.Events.EPOCH_COMPLETED, closing_event_name=engines.Events.COMPLETED,
    )  # fmt: skip
    engine.run(data(), max_epochs=2)
    shown = capsys.readouterr().out
    assert "updates=8" in shown and "dead=" in shown and "change=" in shown


def test_they_come_every_so_often_and_at_the_end(tmp_path):
    model = network()
    engine, convergence = trainer(model), handlers.Convergence(model, folder=tmp_path / "other")
    convergence.attach(engine, folder=tmp_path, every=2)
    engine.run(data()[:1], max_epochs=5)
    assert [epoch for epoch, _ in convergence.history["0"]] == [2, 4, 5] and not (tmp_path / "other").exists()
    assert (tmp_path / "convergence.png").exists()
    again = handlers.Convergence(model)
    again.load_state_dict(convergence.state_dict())
    assert again.history == convergence.history
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"every must be a whole number of at least 1, got {every}"):
            convergence.attach(engine, every=every)
    with pytest.raises(ValueError, match="model must hold a Hebbian layer"):
        handlers.Figures(nn.Linear(2, 2))


def test_convergence_is_by_the_norm_of_the_rule():
    model = nn.Sequential(
        hk.nn.HebbianLinear(2, 4, rule=hk.KrotovHopfield(p=4.0)),
        hk.nn.HebbianConv2d(1, 2, 2, rule=hk.SoftWTA()),
    )
    half = 0.5**0.25  # (half, −half) has 4-norm 1, but 2-norm 1.19
    model[0].weight.data = torch.tensor([[half, -half], [0.3, 0.4], [0.0, 1.04], [1.06, 0.0]])
    model[1].weight.data = torch.stack([torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), 0.25**0.25)])
    engine = engines.Engine(lambda engine, batch: None)
    convergence = handlers.Convergence(model, tolerance=0.05)
    convergence.attach(engine)
    engine.run([0])
    assert convergence.history == {"0": [(1, 0.5)], "1": [(1, 0.5)]} and engine.state.metrics["converged"] == 0.5


RULES = [hk.KrotovHopfield(p=3.0), hk.WTA(), hk.WTA(similarity="dot", patches="centred"), hk.Oja(), hk.Teacher()]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_winners_are_those_of_the_rule(rule, mode):
    torch.manual_seed(0)
    layer = hk.nn.HebbianConv2d(2, 7, 3, stride=2, padding=1, padding_mode=mode, rule=rule)
    layer.weight.data = random(layer.weight.shape, seed=1) * torch.arange(1, 8).view(-1, 1, 1, 1)
    x = random((4, 2, 6, 6), seed=2, offset=0.5)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    patches = torch.nn.functional.unfold(padded, 3, stride=2).transpose(1, 2).flatten(0, 1)
    weight = layer.weight.flatten(1)
    if rule.patches == "centred":
        patches = patches - patches.mean(1, keepdim=True)
    if isinstance(rule, hk.KrotovHopfield):
        weight = weight.sign() * weight.abs() ** 2
    elif rule == hk.WTA():
        weight = weight / weight.norm(dim=1, keepdim=True)
    want = torch.bincount((patches @ weight.T).argmax(1), minlength=7)
    got = handlers.wins(layer, x)
    assert got.tolist() == want.tolist() and got.sum() == 4 * 9


def test_winners_count_dead_units_on_each_layers_own_input():
    model = network()
    engine = engines.Engine(lambda engine, batch: None)
    handlers.Winners(model, SAMPLE).attach(engine)
    engine.run([0])
    with torch.no_grad():
        model.eval()
        inputs = [SAMPLE, model[:4](SAMPLE), model[:5](SAMPLE)]
    counts = [handlers.wins(model[index], x) for index, x in zip((0, 4, 5), inputs, strict=True)]
    dead = sum(int((count == 0).sum()) for count in counts)
    assert engine.state.metrics["winless"] == dead / 17 and dead > 0 and counts[1].sum() == 5


def test_activity_of_a_known_output():
    output = torch.tensor([[0.0, 2.0, -1.0, 2.0], [-1.0, 6.0, -2.0, 0.0]])
    want = {"mean": 6 / 8, "std": np.sqrt(50 / 8 - (6 / 8) ** 2), "q50": 0.0, "inactive": 5 / 8, "silent": 0.5}
    want["sparseness"] = 1 - (10 / 8) ** 2 / (44 / 8)
    for shaped in (output, output.view(2, 4, 1, 1).expand(2, 4, 3, 3), output.view(2, 1, 4)):
        got = handlers.activity(shaped)
        assert {name: got[name] for name in want} == pytest.approx(want)
    assert handlers.activity(-output.abs())["sparseness"] == 1
    assert handlers.activity(torch.arange(1.0, 102.0).view(1, -1))["q05"] == pytest.approx(6)


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['torch.utils.tensorboard'] = None\n"
    code += "from hebbkern.training import handlers; handlers.tensorboard('x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: hebbkern.training: tensorboard is missing: pip install 'hebbkern[train]'" in done.stderr
