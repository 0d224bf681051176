"""order="greedy": one layer after the other, in the order of the data, then the supervised part."""

import itertools

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear
from trainings import batches, training

Events = training.engine.Events


class Backwards(nn.Module):
    """Its layers are registered in the order opposite to that of the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.answer = nn.Linear(5, 3)
        self.last = HebbianLinear(8, 5, rule=hk.Oja())
        self.middle = HebbianLinear(12, 8, rule=hk.WTA())
        self.norm = nn.BatchNorm1d(12)
        self.first = HebbianLinear(36, 12, rule=hk.Sanger())
        self.unused = HebbianLinear(3, 3, rule=hk.Sanger())
        self.top = nn.Linear(3, 3)

    def forward(self, x):
        x = self.norm(self.first(x.flatten(1))).relu()
        return self.top(self.answer(self.last(self.middle(x).relu())).relu())


def greedy(model, **options):
    return training.train(model, batches(), **{"lr": 0.1, "epochs": 2, "order": "greedy"} | options)


def watched(model, **options):
    """(layer, lr) of each epoch, and the weights after it."""
    epochs = []

    def record(engine):
        weights = {name: layer.weight.clone() for name, layer in model.named_children()}
        epochs.append((engine.state.layer, round(engine.state.lr, 6), weights))

    greedy(model, handlers=[(Events.EPOCH_COMPLETED, record)], **options)
    return epochs


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_layers_learn_one_after_the_other_in_the_order_of_the_data():
    epochs = watched(Backwards())
    expected = [(name, lr) for name in ("first", "middle", "last") for lr in (0.1, 0.05)]
    assert [epoch[:2] for epoch in epochs] == expected
    weights = [{name: layer.weight for name, layer in Backwards().named_children()}, *(epoch[2] for epoch in epochs)]
    changes = [moved(*pair) for pair in itertools.pairwise(weights)]
    assert changes == [{"first"}, {"first"}, {"middle"}, {"middle"}, {"last"}, {"last"}]


def test_greedy_training_by_hand():
    """Each layer learns from the final output of the layers before it, in training mode."""
    model, twin = Backwards(), Backwards()
    greedy(model)
    data = batches()
    for epoch in range(6):
        data.seek(epoch * len(data))
        lr = (0.1, 0.05)[epoch % 2]
        for i, (x, _) in enumerate(data):
            x = x.flatten(1)
            if epoch < 2:
                twin.first.learn(x, lr=lr)
                # The model is no nn.Sequential, so each pass is whole and updates the statistics of the norm.
                twin.norm(twin.first(x))
                continue
            x = twin.norm(twin.first(x)).relu()
            if epoch < 4:
                twin.middle.learn(x, lr=lr)
                continue
            twin.last.learn(twin.middle(x).relu(), lr=lr)
            assert i < 6
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_finding_the_order_changes_nothing(monkeypatch):
    states = []

    def stopped(engine, *arguments, **options):
        states.append((torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}))

    monkeypatch.setattr(training.engine.Engine, "run", stopped)
    model = Backwards().train()
    model.top.eval()
    before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    greedy(model)
    assert torch.equal(states[0][0], before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in states[0][1].items())
    assert model.training and model.norm.training and not model.top.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_finding_the_order_draws_no_number_of_a_loader(monkeypatch):
    states = []
    monkeypatch.setattr(training.engine.Engine, "run", lambda *call, **options: states.append(torch.get_rng_state()))
    data = torch.utils.data.TensorDataset(random((8, 36), seed=3), torch.arange(8) % 3)
    loader, model = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True), Backwards()
    before = torch.get_rng_state()
    training.train(model, loader, lr=0.1, epochs=1, order="greedy")
    assert torch.equal(states[0], before)


def test_each_layer_has_epochs_and_a_rate_of_its_own():
    epochs = watched(Backwards(), epochs={"*": 1, "first": 3}, decay="cosine")
    assert [epoch[0] for epoch in epochs] == ["first", "first", "first", "middle", "last"]
    assert [epoch[1] for epoch in epochs] == pytest.approx([0.1, 0.075, 0.025, 0.1, 0.1])
    epochs = watched(Backwards(), epochs=1, lr={"first": 0.3, "last": 0.1})
    assert [epoch[0] for epoch in epochs] == ["first", "last"]
    epochs = watched(Backwards(), epochs={"middle": 2})
    assert [epoch[:2] for epoch in epochs] == [("middle", 0.1), ("middle", 0.05)]


def test_frozen_layers_have_no_epochs():
    model = Backwards()
    model.middle.frozen.fill_(True)
    assert [epoch[0] for epoch in watched(model, epochs=1)] == ["first", "last"]
    for layer in (model.first, model.last, model.unused):
        layer.frozen.fill_(True)
    with pytest.raises(ValueError, match="model must hold a layer that learns, got only frozen or unreached ones"):
        greedy(model)


def test_the_supervised_part_is_trained_last():
    model = Backwards()
    optimizer = torch.optim.SGD(model.top.parameters(), lr=0.1)
    epochs = watched(model, epochs={"*": 1, "top": 2}, supervised_from="top", optimizer=optimizer)
    assert [epoch[0] for epoch in epochs] == ["first", "middle", "last", "top", "top"]
    assert moved(epochs[1][2], epochs[2][2]) == {"last"} and moved(epochs[2][2], epochs[4][2]) <= {"top", "norm"}
    assert "top" in moved(epochs[3][2], epochs[4][2])
    optimizer = torch.optim.SGD(model.top.parameters(), lr=0.1)
    with pytest.raises(ValueError, match='epochs must have an entry for "top", got none'):
        greedy(model, epochs={"first": 1}, supervised_from="top", optimizer=optimizer)


@pytest.mark.parametrize("stop", [1, 6, 9, 17, 20, 23])
def test_a_greedy_training_resumes_bit_for_bit(tmp_path, stop):
    def run(stop=None, **options):
        model, layers = Backwards(), []

        def interrupt(engine):
            if engine.state.iteration == stop:
                raise KeyboardInterrupt

        optimizer = torch.optim.Adam(model.top.parameters(), lr=0.01)
        greedy(
            model,
            epochs=1,
            supervised_from="top",
            optimizer=optimizer,
            handlers=[
                (Events.GET_BATCH_STARTED, interrupt),
                (Events.ITERATION_COMPLETED, lambda engine: layers.append(engine.state.layer)),
            ],
            **options,
        )
        return model.state_dict(), layers

    whole, layers = run()
    assert layers == ["first"] * 6 + ["middle"] * 6 + ["last"] * 6 + ["top"] * 6
    with pytest.raises(KeyboardInterrupt):
        run(stop=stop, folder=tmp_path, save_every=1)
    resumed, rest = run(folder=tmp_path, resume=True)
    assert rest == layers[stop:] and all(torch.equal(value, whole[name]) for name, value in resumed.items())
