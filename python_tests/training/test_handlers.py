"""Handlers: figures and pictures of a training, which do not change it."""

import json
import random as python_random

import numpy as np
import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.evaluation import measures
from hebbkern.nn import HebbianConv2d, HebbianLinear
from trainings import EPOCHS, batches, network, train, training

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
Events = training.engine.Events
IMAGES = random((7, 1, 6, 6), seed=8)


def everything(model, **places):
    pictures = [training.WeightPictures, training.WeightHistograms, training.Convergence]
    watchers = [training.Winners, training.Activations]
    return [
        training.Figures(model, writer=places.get("writer")),
        *(kind(model, **places) for kind in pictures),
        *(kind(model, IMAGES, **places) for kind in watchers),
        training.Curves("change", "dead", **places),
    ]


def states():
    return torch.get_rng_state(), np.random.get_state(legacy=False), python_random.getstate()


def alone(layer, x, lr=0.1, epochs=1, **handlers):
    """One layer on all of x at each step, one step an epoch."""
    data = training.Batches(x, batch_size=len(x))
    return training.train(layer, data, lr=lr, epochs=epochs, decay="constant", **handlers)


def linear(weight, rule=None):
    layer = HebbianLinear(weight.shape[1], weight.shape[0], rule=rule or hk.WTA())
    layer.weight.data.copy_(weight)
    return layer


def noisy():
    """With batch norm and dropout, which a training pass changes and draws from, used out of order."""
    model = network()
    return nn.Sequential(model[0], nn.BatchNorm2d(6), nn.Dropout(0.5), *model[1:])


@pytest.mark.slow(22)
def test_the_training_stays_the_same_bits(tmp_path):
    plain, watched, ends = noisy(), noisy(), []
    for model, handlers in ((plain, []), (watched, everything(watched, folder=tmp_path))):
        torch.manual_seed(1), np.random.seed(1), python_random.seed(1)
        model[2].eval()  # a mode of its own
        train(model, handlers=handlers)
        ends.append(states())
        assert [module.training for module in model.modules()] == [i != 3 for i in range(len(list(model.modules())))]
    assert len(list(tmp_path.glob("*.png"))) == 3 * EPOCHS + 3 * EPOCHS + 2
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    (torch_state, numpy_state, python_state), other = ends
    assert torch.equal(torch_state, other[0]) and python_state == other[2]
    assert np.array_equal(numpy_state["state"]["key"], other[1]["state"]["key"])
    assert numpy_state["state"]["pos"] == other[1]["state"]["pos"]


def test_what_moved_and_by_how_much():
    weight = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
    layer = linear(weight)
    layer.frozen[1] = True
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # neurons 0 and 1 win, 1 is frozen
    engine = alone(layer, x, lr=0.5, epochs=2, handlers=[training.Figures(layer)])
    # w0 = 2 → 1.5 → 1.25 by w += lr (x − w); three neurons of two weights are not frozen.
    assert engine.state.metrics == {"updates": 2, "dead": 2, "change": pytest.approx(0.25 / 6)}


def test_figures_are_of_layers_that_learn():
    model, recorded = network(), []
    record = (Events.EPOCH_COMPLETED, lambda e: recorded.append((e.state.layer, dict(e.state.metrics))))
    before = {name: model[int(name)].weight.clone() for name in "03"}
    engine = training.train(
        model, batches(), lr={"0": 0.1, "3": 0.1}, epochs=1, order="greedy", handlers=[training.Figures(model), record]
    )
    assert [layer for layer, _ in recorded] == ["0", "3"]
    for name, figures in recorded:
        moved = (model[int(name)].weight - before[name]).flatten(1)
        assert figures["change"] == pytest.approx(moved.abs().mean().item()) and figures["change"] > 0
        assert figures["dead"] == int((moved == 0).all(1).sum())
    assert engine.state.metrics["updates"] == 12


def test_an_epoch_in_which_nothing_learns_has_no_dead():
    model = network()
    engine = train(model, handlers=[(Events.EPOCH_STARTED(once=4), lambda e: freeze(model)), training.Figures(model)])
    assert engine.state.metrics == {"updates": 24, "dead": 0, "change": 0.0}


def freeze(model):
    for layer in (model[0], model[3], model[4]):
        layer.frozen[:] = True


def test_the_progress_bar_shows_them(capsys):
    handlers = pytest.importorskip("ignite.handlers")
    model = network()

    class Bar:
        def attach(self, engine):
            bar = handlers.ProgressBar(persist=True, ncols=200)
            bar.attach(
                engine, metric_names="all", event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED
            )

    train(model, handlers=[training.Figures(model), Bar()])
    shown = capsys.readouterr().err
    assert "updates=24" in shown and "dead=" in shown and "change=" in shown


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), (9, [4])])
def test_pictures_after_every_few_epochs_and_the_last(tmp_path, every, epochs):
    model = network()
    train(model, handlers=[training.WeightPictures(model, folder=tmp_path / "new", every=every)])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        f"weights_{name}_{epoch:04d}.png" for name in "034" for epoch in epochs
    )


def test_pictures_are_those_of_the_weights(tmp_path):
    layer = linear(random((12, 25), seed=1), hk.Oja())
    handler = training.WeightPictures(layer, folder=tmp_path, neurons=5, colours="grey", title="here")
    alone(layer, random((4, 25)), handlers=[handler])
    want = hk.plots.weight_grid(layer.weight[:5], tmp_path / "want.png", colours="grey", title="here")
    assert (tmp_path / "weights_model_0001.png").read_bytes() == want.read_bytes()


def test_histograms_compare_with_the_weights_before(tmp_path):
    layer = linear(random((12, 25), seed=1), hk.Oja())
    before = layer.weight.detach().clone()
    alone(layer, random((4, 25)), epochs=2, handlers=[training.WeightHistograms(layer, folder=tmp_path)])
    assert not torch.equal(before, layer.weight)
    want = tmp_path / "want.png"
    hk.plots.weight_histograms({"": layer.weight}, want, before={"": before}, title="epoch 2")
    assert (tmp_path / "histograms_0002.png").read_bytes() == want.read_bytes()


def test_convergence_counts_neurons_of_length_one(tmp_path):
    weight = torch.tensor([[1.0, 0.0], [0.6, 0.6], [0.95, 0.0], [0.0, 1.05]])
    layer = linear(weight)
    layer.frozen[:3] = True  # √0.72 is not near 1, the others are
    x = torch.tensor([[1.0, 0.0]])
    handler = training.Convergence(layer, 0.1, folder=tmp_path)
    alone(layer, x, epochs=2, handlers=[handler])
    assert json.loads((tmp_path / "convergence.json").read_text()) == {"": [[1, 0.75], [2, 0.75]]}
    want = hk.plots.convergence({"": [(1, 0.75), (2, 0.75)]}, tmp_path / "want.png", tolerance=0.1)
    assert (tmp_path / "convergence.png").read_bytes() == want.read_bytes()


def test_lengths_are_of_the_rules_own_norm():
    weight = torch.tensor([[3.0, -4.0], [1.0, 0.0]])
    assert measures.lengths(linear(weight)).tolist() == [5, 1]
    norms = measures.lengths(linear(weight, hk.KrotovHopfield(p=4)))
    assert norms.tolist() == pytest.approx([(3**4 + 4**4) ** 0.25, 1])
    conv = HebbianConv2d(2, 1, 1, rule=hk.Oja())
    conv.weight.data.copy_(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    assert measures.lengths(conv).tolist() == [5]


class Stopped(Exception):
    pass


def stop(engine):
    raise Stopped


@pytest.mark.slow(7)
@pytest.mark.parametrize("iteration", [6, 9, 12, 14])
def test_a_resumed_training_goes_on_with_its_history(tmp_path, iteration):
    def handlers(model, folder):
        places = {"folder": tmp_path / folder}
        return [
            training.Figures(model),
            training.Convergence(model, 1.0, **places),
            training.Curves("change", **places),
        ]

    whole, part, resumed = network(), network(), network()
    train(whole, handlers=handlers(whole, "whole"))
    with pytest.raises(Stopped):
        last = (Events.ITERATION_STARTED(once=iteration + 2), stop)
        train(part, tmp_path, save_every=1, handlers=[*handlers(part, "part"), last])
    train(resumed, tmp_path, resume=True, handlers=handlers(resumed, "part"))
    for name in ("convergence", "curves"):
        points = [json.loads((tmp_path / folder / f"{name}.json").read_text()) for folder in ("whole", "part")]
        epochs = [epoch for epoch, _ in next(iter(points[0].values()))]
        assert epochs == [1, 2, 3, 4] and [[e for e, _ in line] for line in points[1].values()] == [epochs] * len(
            points[0]
        )
        if name == "convergence":
            assert points[0] == points[1]
            assert len({share for line in points[0].values() for _, share in line}) > 1
            assert (tmp_path / "part/convergence.png").read_bytes() == (tmp_path / "whole/convergence.png").read_bytes()


def test_another_training_begins_its_own_history(tmp_path):
    for epochs, every in ((3, 1), (2, 2)):
        layer = linear(random((3, 4)))
        alone(
            layer, random((4, 4)), epochs=epochs, handlers=[training.Convergence(layer, folder=tmp_path, every=every)]
        )
    assert [epoch for epoch, _ in json.loads((tmp_path / "convergence.json").read_text())[""]] == [2]


def test_curves_are_of_metrics_that_are_there(tmp_path):
    layer = linear(random((3, 4)))

    def measure(engine):
        if engine.state.epoch > 1:
            engine.state.metrics["readout"] = engine.state.epoch / 4

    handlers = [(Events.EPOCH_COMPLETED, measure), training.Curves("readout", "other", ylabel="y", folder=tmp_path)]
    alone(layer, random((4, 4)), epochs=3, handlers=handlers)
    points = {"readout": [[2, 0.5], [3, 0.75]]}
    assert json.loads((tmp_path / "curves.json").read_text()) == points
    want = hk.plots.learning_curves(points, tmp_path / "want.png", ylabel="y")
    assert (tmp_path / "curves.png").read_bytes() == want.read_bytes()


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (hk.WTA(), [1, 2, 0]),  # by angle
        (hk.WTA(similarity="dot"), [1, 0, 2]),
        (hk.WTA(k=2), [1, 3, 2]),
        (hk.KrotovHopfield(), [1, 0, 2]),  # w·x
        (hk.KrotovHopfield(p=1), [1, 2, 0]),  # sign(w)·x, ties to the lower
        (hk.Oja(), [1, 0, 2]),
        (hk.Supervised(), [1, 0, 2]),
        (hk.WTA(patches="centred"), [3, 0, 0]),
    ],
)
def test_wins_are_under_the_rules_own_similarity(rule, wanted):
    layer = linear(torch.tensor([[1.0, -1.0], [0.5, 0.5], [1.0, 3.0]]), rule)
    x = torch.tensor([[1.0, 0.5], [1.0, 0.9], [2.0, -1.0]])
    assert measures.wins(layer, x).tolist() == responses(layer, x) == wanted


def responses(layer, x):
    """Wins from the definitions, one patch at a time."""
    rule, w = layer.rule, layer.weight
    x = x - x.mean(1, keepdim=True) if rule.patches == "centred" else x
    if isinstance(rule, hk.KrotovHopfield):
        w = w.sign() * w.abs() ** (rule.p - 1)
    s = x @ w.T
    if getattr(rule, "similarity", "dot") == "cosine":
        s = s / w.norm(dim=1)
    counts = [0] * len(w)
    for row in s.tolist():
        for j in sorted(range(len(w)), key=lambda j: (-row[j], j))[
            : getattr(rule, "k", 1) if "WTA" in str(rule) else 1
        ]:
            counts[j] += 1
    return counts


def test_wins_of_a_convolution_count_every_patch():
    layer = HebbianConv2d(2, 5, 3, stride=2, padding=1, rule=hk.WTA())
    x = random((3, 2, 7, 8))
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
    cosine = patches @ nn.functional.normalize(layer.weight.flatten(1)).T
    counts = measures.wins(layer, x)
    assert counts.tolist() == torch.bincount(cosine.argmax(1), minlength=5).tolist() and counts.sum() == 3 * 4 * 4


def test_winners_are_those_of_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(training.handlers, "BATCH_SIZE", 3)
    layer = linear(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    images = torch.tensor([[255, 0]] * 4 + [[0, 255]] * 3, dtype=torch.uint8)
    handler = training.Winners(layer, images, folder=tmp_path)
    alone(layer, torch.eye(2), handlers=[handler])
    assert [x[""].max().item() for x in handler.read(images)] == [1, 1, 1]
    want = hk.plots.winners({"": torch.tensor([4, 3, 0])}, tmp_path / "want.png", title="epoch 1")
    assert (tmp_path / "winners_0001.png").read_bytes() == want.read_bytes()


def test_answers_are_a_row_a_patch():
    maps, sequences = torch.arange(12.0).view(1, 3, 2, 2), torch.arange(12.0).view(2, 2, 3)
    conv, layer = HebbianConv2d(1, 3, 1, rule=hk.WTA()), linear(torch.ones(3, 2))
    assert measures.answers(conv, maps).tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert measures.answers(layer, sequences).tolist() == torch.arange(12.0).view(4, 3).tolist()


def test_activity_by_its_formulas():
    y = torch.tensor([[1.0, 0.0, 0.0, -1.0], [2.0, 2.0, 2.0, -2.0], [0.0, -3.0, -1.0, 0.0]])
    row = measures.activity(y)
    assert row["mean"] == pytest.approx(0) and row["inactive"] == pytest.approx(8 / 12) and row["silent"] == 0.25
    # (Σ r / K)² / (Σ r² / K): 1/4 and 3/4; no neuron is active on the third patch.
    assert row["sparseness"] == pytest.approx(((1 - 1 / 4) + (1 - 3 / 4)) / 2 / (1 - 1 / 4))
    assert row["q50"] == pytest.approx(0) and row["q25"] == pytest.approx(-1) and row["q95"] == pytest.approx(2)
    assert measures.activity(y * 1e-30)["sparseness"] == pytest.approx(row["sparseness"])
    assert measures.activity(-y.abs() - 1)["sparseness"] == 0 == measures.activity(y[:, :1])["sparseness"]


@pytest.mark.parametrize("size", [3, 100])
def test_activations_are_those_of_all_images(tmp_path, monkeypatch, size):
    monkeypatch.setattr(training.handlers, "BATCH_SIZE", size)
    model = network()
    train(model, handlers=[training.Activations(model, IMAGES, folder=tmp_path, every=4)])
    with torch.no_grad():
        maps = model[0](IMAGES)
        hidden = model[3](maps.relu().flatten(1))
        statistics = {"0": maps.permute(0, 2, 3, 1).reshape(-1, 6), "3": hidden, "4": model[4](hidden)}
    statistics = {name: measures.activity(y) for name, y in statistics.items()}
    want = hk.plots.activations(statistics, tmp_path / "want.png", title="epoch 4")
    drawn, wanted = (np.asarray(image.open(path)) for path in (tmp_path / "activations_0004.png", want))
    assert drawn.shape == wanted.shape and (drawn != wanted).mean() < 0.001


def test_large_layers_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(training.handlers, "NUMBERS", 60)
    patches, model = [], network()
    monkeypatch.setattr(training.handlers, "activity", lambda y: patches.append(len(y)) or measures.activity(y))
    train(model, handlers=[training.Activations(model, IMAGES, folder=tmp_path, every=4)])
    assert patches == [10, 7, 7]  # 7·16 patches of 6 neurons, 7 of 8 and 7 of 3


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """What TensorBoard reads of a training that every handler watched."""
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, model = tmp_path_factory.mktemp("events"), network()
    with tensorboard.SummaryWriter(folder / "written") as writer:
        engine = train(model, handlers=everything(model, writer=writer, every=2))
    assert [path.name for path in folder.iterdir()] == ["written"]
    read = EventAccumulator(str(folder / "written"), {"images": 0, "scalars": 0, "histograms": 0})
    return read.Reload(), engine, model


def test_tensorboard_reads_the_scalars(events):
    read, engine, model = events
    for name in ("updates", "dead", "change"):
        points = read.Scalars(f"figures/{name}")
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert points[-1].value == pytest.approx(engine.state.metrics[name])
    for metric, kind in (("converged", "convergence"), ("winless", "winless")):
        sizes = {name: len(model[int(name)].weight) for name in "034"}
        of_all = sum(read.Scalars(f"{kind}/{name}")[-1].value * size for name, size in sizes.items())
        assert engine.state.metrics[metric] == pytest.approx(of_all / sum(sizes.values()), abs=1e-6)
    kinds = ("convergence", "winless", "activations mean", "activations silent", "activations sparseness")
    for tag in [f"{kind}/{name}" for kind in kinds for name in "034"] + ["curves/change", "curves/dead"]:
        assert [point.step for point in read.Scalars(tag)] == [2, 4], tag
    with torch.no_grad():
        want = model[0](IMAGES).mean().item()
    assert read.Scalars("activations mean/0")[-1].value == pytest.approx(want, abs=1e-5)


def test_tensorboard_reads_the_pictures(events, tmp_path):
    read, _, model = events
    for tag in ("weights/0", "weights/3", "weights/4", "winners", "activations"):
        assert [picture.step for picture in read.Images(tag)] == [2, 4], tag
    shown = tmp_path / "shown.png"
    shown.write_bytes(read.Images("weights/3")[-1].encoded_image_string)
    want = hk.plots.weight_grid(model[3].weight, tmp_path / "want.png", title="3, epoch 4")
    drawn, wanted = (np.asarray(image.open(path).convert("RGB")) for path in (shown, want))
    assert np.array_equal(drawn, wanted)


def test_tensorboard_reads_the_histograms(events):
    read, _, model = events
    for name in "034":
        histogram = read.Histograms(f"weights/{name}")[-1].histogram_value
        weight = model[int(name)].weight
        assert histogram.num == weight.numel() and histogram.max == pytest.approx(weight.max().item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, f: training.WeightPictures(m), "WeightPictures: folder or writer must be given, got neither"),
        (lambda m, f: training.Winners(m, IMAGES, folder=f, every=0), "Winners: every must be a whole number of at"),
        (lambda m, f: training.Convergence(m, -0.1, folder=f), "Convergence: tolerance must be at least 0, got -0.1"),
        (lambda m, f: training.Activations(m, IMAGES[:0], folder=f), "Activations: images must be at least one, got"),
        (lambda m, f: training.Curves(folder=f), "Curves: names must be one metric or more, got none"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=f"hebbkern.{message}"):
        make(network(), tmp_path)


def test_a_layer_that_images_do_not_reach_is_refused_before_the_training(tmp_path):
    model = network()
    model[0].beside = linear(random((2, 3)))
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(ValueError, match=r'layer must be one that the data reaches, got "0\.beside"'):
        train(model, handlers=[training.Winners(model, IMAGES, folder=tmp_path)])
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_only_the_first_process_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(training.handlers.idist, "get_rank", lambda: 1)
    model = network()
    engine = train(model, handlers=everything(model, folder=tmp_path))
    assert not list(tmp_path.iterdir()) and engine.state.metrics["updates"] == 24
