"""hebbian_trainer: which layers learn from a batch, where a pass ends, the supervised part, ignite's handlers."""

import copy

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear
from trainings import EPOCHS, batches, network, train, training

handlers = pytest.importorskip("ignite.handlers")
metrics = pytest.importorskip("ignite.metrics")
Events = training.engine.Events


class Spy(nn.Module):
    """Counts the forward passes that reach it."""

    passes = 0

    def forward(self, x):
        self.passes += 1
        return x


class Residual(nn.Module):
    """No Sequential: a residual sum of two branches, the second of which has the layer `twice` twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(6, 3)  # registered first, called last
        self.left = HebbianLinear(36, 6, rule=hk.Sanger(), bias=True)
        self.right = HebbianLinear(36, 6, rule=hk.WTA())
        self.twice = HebbianLinear(6, 6, rule=hk.Oja())
        self.spy, self.answer = Spy(), nn.Linear(6, 3)

    def forward(self, x):
        x = x.flatten(1)
        left = self.left(x)
        right = self.twice(self.twice(self.right(x)).relu())
        return self.answer(self.spy((left + right).relu())) + self.head(left)


def test_any_module_learns_in_the_order_of_its_data():
    model, twin = Residual(), Residual()
    training.train(model, batches(), lr=0.01, epochs=1)
    for x, _ in batches():
        x = x.flatten(1)
        twin.left.learn(x, lr=0.01)
        twin.right.learn(x, lr=0.01)
        hidden = twin.right(x)
        twin.twice.learn(hidden, lr=0.01)
        hidden = twin.twice(hidden).relu()
        twin.twice.learn(hidden, lr=0.01)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert model.spy.passes == 6  # what learns twice may learn a third time


def passes(*after, wrap=lambda chain: chain, **hooks):
    """How often data reaches a spy after the last layer, in three forward passes."""
    spy = Spy()
    chain = nn.Sequential(hk.nn.HebbianLinear(36, 5, rule=hk.WTA()), *after, spy)
    for register, hook in hooks.items():
        getattr(chain[0], register)(hook)
    trainer = training.hebbian_trainer(wrap(chain), lr=0.1)
    trainer.run([(random((4, 36), seed=i), None) for i in range(3)])
    return spy.passes


class Wrapped(nn.Module):
    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def forward(self, x):
        return self.chain(x)


def test_a_pass_ends_after_the_last_layer_has_learnt():
    assert passes() == passes(nn.Dropout(0.5)) == passes(register_forward_pre_hook=lambda *call: None) == 0
    assert passes(nn.BatchNorm1d(5)) == 3  # its running statistics must be updated
    assert passes(register_forward_hook=lambda *call: None) == 3
    assert passes(wrap=Wrapped) == 3  # only nn.Sequential says what comes after


def test_a_chain_ends_at_once():
    layer, spy = hk.nn.HebbianLinear(36, 5, rule=hk.WTA()), Spy()
    for model in (nn.Sequential(nn.Flatten(), nn.Sequential(layer, nn.ReLU()), spy), layer):
        training.train(model, batches(), lr=0.1, epochs=1) if model is not layer else layer.learn(
            random((2, 36)), lr=0.1
        )
    assert spy.passes == 0
    normed = nn.Sequential(nn.Flatten(), layer, nn.BatchNorm1d(5), spy)
    training.train(normed, batches(), lr=0.1, epochs=1)
    assert spy.passes == 6 and normed[2].num_batches_tracked == 6


class Choosing(nn.Module):
    """Its batch says which layers answer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (HebbianLinear(4, 4, rule=hk.Hebb()) for _ in range(2))

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden) if x.sum() > 0 else hidden


def test_a_layer_that_a_pass_left_out_learns_in_the_next():
    model = Choosing()
    twin, trainer = copy.deepcopy(model), training.hebbian_trainer(model)
    trainer.state.lr = 0.1
    batches = [sign * random((3, 4)).abs() for sign in (1, 1, -1, 1)]
    trainer.run([(x, None) for x in batches])
    for x in batches:
        with hk.learning(twin, lr=0.1):
            twin(x)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


class Forbidden(hk.WTA):
    """A rule that must not be used."""

    def update(self, *arguments, **options):
        raise AssertionError("a frozen layer learnt")


def test_frozen_layers_are_skipped():
    model = network()
    model[3].rule = Forbidden()
    model[3].frozen[:] = True
    train(model)
    assert torch.equal(model[3].weight, network()[3].weight) and not torch.equal(model[0].weight, network()[0].weight)
    model[3].frozen[2] = False
    with pytest.raises(AssertionError, match="a frozen layer learnt"):
        train(model)


def test_a_mask_that_is_replaced_counts():
    layer = HebbianLinear(4, 3, rule=hk.Hebb())
    trainer = training.hebbian_trainer(nn.Sequential(layer))
    trainer.state.lr = 0.1
    for frozen in (True, False, True, False):
        before = layer.weight.clone()
        del layer.frozen  # the next mask may have the address of this one
        layer.register_buffer("frozen", torch.full((3,), frozen))
        trainer.run([(random((2, 4)), None)])
        assert torch.equal(layer.weight, before) == frozen


def test_lr_is_where_the_rate_of_the_engine_starts():
    model = network()
    assert training.hebbian_trainer(model).state.lr == 0
    trainer = training.hebbian_trainer(model, lr=0.1)
    twin, factors = network(), training.hebbian_trainer(network(), lr={"0": 0.1, "3": 0.2})
    assert trainer.state.lr == 0.1 and factors.state.lr == 1
    trainer.run(batches(), max_epochs=1)
    training.train(twin, batches(), lr=0.1, epochs=1, decay="constant")
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_no_layer_may_have_a_rate():
    model = nn.Sequential(HebbianLinear(4, 3, rule=hk.Hebb()), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = training.hebbian_trainer(model, lr={}, supervised_from="1", optimizer=optimizer)
    trainer.state.lr = 0.1
    trainer.run([(random((2, 4)), torch.tensor([0, 1]))])
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert moved == [False, True, True]


def test_a_layer_may_freeze_on_the_way():
    model, weights = network(), []

    def freeze(engine):
        model[3].frozen.fill_(True)
        model[3].rule = Forbidden()
        weights.append(model[3].weight.clone())

    train(model, handlers=[(Events.EPOCH_COMPLETED(once=2), freeze)])
    assert torch.equal(model[3].weight, weights[0])


def test_supervised_modules_learn_by_their_loss():
    """Beside Hebbian layers, by hand: the gradient ends where the supervised part begins."""

    def mixed():
        torch.manual_seed(0)
        first = HebbianLinear(36, 8, rule=hk.KrotovHopfield(), bias=True)
        return nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(8), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))

    model, twin = mixed(), mixed()
    outputs = []
    engine = train(
        model,
        supervised_from="3",
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        handlers=[(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))],
    )
    optimizer = torch.optim.SGD(twin[3:].parameters(), lr=0.1, momentum=0.9)
    data = batches()
    for epoch in range(EPOCHS):
        data.seek(epoch * len(data))
        for x, labels in data:
            twin[1].learn(x.flatten(1), lr=0.1 * (1 - epoch / EPOCHS))
            loss = nn.functional.cross_entropy(twin[3:](twin[:3](x).detach()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for weight, want in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model[2].parameters())
    torch.testing.assert_close(engine.state.output["loss"], loss.detach(), rtol=1e-4, atol=1e-5)
    assert len(outputs) == 24 and outputs[0]["y_pred"].shape == (8, 3)


def test_supervised_modules_of_a_branching_model():
    """`answer` is called before `head`, which was registered before; what is registered before is not trained."""
    model, before = Residual(), Residual()
    optimizer = torch.optim.Adam(model.answer.parameters(), lr=0.01)
    model.twice.rule = hk.Sanger()
    training.train(model, batches(), lr=0.01, epochs=2, supervised_from="answer", optimizer=optimizer)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before.get_parameter(name))}
    assert moved == {"left.weight", "right.weight", "twice.weight", "answer.weight", "answer.bias"}


def test_compiled_models_train_alike():
    torch.compiler.reset()
    model, twin = network(), network()
    train(torch.compile(model, backend="aot_eager", fullgraph=True))
    train(twin)
    for weight, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_ignites_handlers_attach(tmp_path, capsys):
    model = nn.Sequential(network(), nn.Linear(3, 3))
    optimizer = torch.optim.Adam(model[1].parameters(), lr=0.01)
    trainer = training.hebbian_trainer(model, supervised_from="1", optimizer=optimizer)
    trainer.state.lr = 0.1
    metrics.Accuracy().attach(trainer, "accuracy")
    metrics.RunningAverage(output_transform=lambda output: output["loss"].item()).attach(trainer, "loss")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, handlers.TerminateOnNan())
    handlers.state_param_scheduler.ExpStateScheduler(initial_value=0.1, gamma=0.5, param_name="lr").attach(
        trainer, Events.EPOCH_COMPLETED
    )
    handlers.ProgressBar().attach(trainer, ["loss"])
    stopping = handlers.EarlyStopping(patience=2, score_function=lambda engine: -engine.state.epoch, trainer=trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
    saver = handlers.Checkpoint(
        {"model": model, "trainer": trainer}, handlers.DiskSaver(tmp_path / "checkpoints"), n_saved=None
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    with handlers.TensorboardLogger(log_dir=tmp_path / "events") as logger:
        logger.attach_output_handler(trainer, Events.EPOCH_COMPLETED, tag="training", metric_names=["accuracy", "loss"])
        trainer.run(batches(), max_epochs=10)
    assert trainer.state.epoch == 3 and trainer.state.lr == pytest.approx(0.1 * 0.5**3)
    assert 0 <= trainer.state.metrics["accuracy"] <= 1 and len(list((tmp_path / "checkpoints").iterdir())) == 3
    (events,) = (tmp_path / "events").iterdir()
    assert b"training/accuracy" in events.read_bytes()
    assert "loss=" in capsys.readouterr().err


def test_each_epoch_begins_in_the_modes_of_the_first():
    model, modes = network(), []
    model[1].eval()
    before = [module.training for module in model.modules()]
    engine = training.hebbian_trainer(model)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: model.eval())  # as ignite's evaluators leave it
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda _: modes.append([part.training for part in model.modules()])
    )
    engine.run(batches(), max_epochs=2)
    assert any(before) and not all(before) and modes == [before] * len(modes) and len(modes) == 2 * len(batches())


def test_batches_without_labels_come_alone_or_in_a_tuple():
    x, learnt = torch.randn(3, 8, 6), []
    for loader in (list(x), [(part,) for part in x], [[part, None] for part in x]):
        layer = HebbianLinear(6, 4, rule=hk.WTA())
        torch.manual_seed(1)
        torch.nn.init.normal_(layer.weight)
        before = layer.weight.clone()
        engine = training.hebbian_trainer(layer)
        engine.state.lr = 0.1
        engine.run(loader, max_epochs=1)
        assert not torch.equal(layer.weight, before)
        learnt.append(layer.weight.detach())
    assert torch.equal(learnt[0], learnt[1]) and torch.equal(learnt[0], learnt[2])
