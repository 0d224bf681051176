"""train: schedules, rates and rules by name, checkpoints, and resuming bit for bit."""

import importlib
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear
from trainings import EPOCHS, batches, network, train, training

state_param_scheduler = pytest.importorskip("ignite.handlers.state_param_scheduler")
Events = training.engine.Events


def test_the_rate_falls_to_zero_by_epochs():
    rates = []
    engine = train(network(), handlers=[(Events.ITERATION_COMPLETED, lambda e: rates.append(e.state.lr))])
    want = [0.1 * (1 - epoch / EPOCHS) for epoch in range(EPOCHS) for _ in range(6)]
    assert rates == pytest.approx(want) and engine.state.iteration == 24


def test_layers_learn_by_products_of_another_dtype():
    model, twin, other = network(), network(), network()
    training.train(model, batches(), lr=0.1, epochs=1, dtype=torch.bfloat16)
    for x, labels in batches():
        with torch.no_grad(), hk.learning(twin, 0.1, labels, dtype=torch.bfloat16):
            twin(x)
    training.train(other, batches(), lr=0.1, epochs=1)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert not any(map(torch.equal, model.parameters(), other.parameters()))


def test_the_engine_is_a_step_on_every_batch():
    model, twin = network(), network()
    train(model)
    data = batches()
    for epoch in range(EPOCHS):
        data.seek(epoch * len(data))
        for x, labels in data:
            with hk.learning(twin, lr=0.1 * (1 - epoch / EPOCHS), labels=labels):
                twin(x)
    for weight, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 6, 9, 12, 23])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, stop):
    whole, part, resumed = network(), network(), network()
    train(whole)

    def interrupt(engine):
        if engine.state.iteration == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(part, tmp_path, save_every=1, handlers=[(Events.ITERATION_STARTED, interrupt)])
    assert not any(map(torch.equal, part.parameters(), whole.parameters()))
    engine = train(resumed, tmp_path, resume=True)
    assert engine.state.iteration == 24
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def test_checkpoints_after_each_epoch_and_two_stay(tmp_path):
    model = network()
    train(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_18.safetensors",
        "checkpoint_24.safetensors",
    ]
    assert training.last_checkpoint(tmp_path).name == "checkpoint_24.safetensors"
    again = network()
    engine = train(again, tmp_path, resume=True)
    assert engine.state.iteration == 24 and all(map(torch.equal, again.parameters(), model.parameters()))


def test_resuming_also_starts(tmp_path):
    model, other = network(), network()
    train(model, tmp_path, resume=True)
    train(other)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_the_order_is_seeded_and_complete():
    data, other = batches(), batches(seed=1)
    first = torch.cat([x for x, _ in data])
    assert torch.equal(first, torch.cat([x for x, _ in data])) and len(data) == 6 and len(first) == 48
    assert not torch.equal(first, torch.cat([x for x, _ in other]))
    assert len(torch.unique(first.flatten(1), dim=0)) == 48
    data.seek(6)
    assert not torch.equal(first, torch.cat([x for x, _ in data]))
    data.seek(4)
    assert torch.equal(first[32:], torch.cat([x for x, _ in data]))
    assert len(training.Batches(first, batch_size=100)) == 1


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must hold a Hebbian layer"):
        train(nn.Linear(3, 3), tmp_path)
    with pytest.raises(ValueError, match="epochs must be a whole number of at least 1, got 0"):
        training.train(network(), batches(), lr=0.1, epochs=0)
    with pytest.raises(ValueError, match=r"labels must be one a sample \(5\), got 4"):
        training.Batches(torch.zeros(5, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        training.Batches(torch.zeros(0, 2))
    train(network(), tmp_path)
    with pytest.raises(
        FileExistsError, match=r"must hold no checkpoints unless resuming, got checkpoint_24.safetensors"
    ):
        train(network(), tmp_path)
    model = network()
    fewer = training.Batches(batches().x, batches().labels, batch_size=10)
    with pytest.raises(ValueError, match=r"must have the batches an epoch of checkpoint_24.safetensors, 6, got 5"):
        training.train(model, fewer, lr=0.1, epochs=EPOCHS, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"must keep stages of checkpoint_24.safetensors, \[\[None, False, 4\]\], got"):
        training.train(model, batches(), lr=0.1, epochs=3, folder=tmp_path, resume=True)
    assert all(map(torch.equal, model.parameters(), network().parameters()))


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['ignite'] = None; import hebbkern; import hebbkern.training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'" in done.stderr


def test_each_layer_has_its_rate_and_rule():
    model, twin = network(), network()
    options = {"rules": {"3": hk.WTA()}, "decay": "cosine"}
    training.train(model, batches(), lr={"*": 0.1, "3": 0.3, "0": 0.2}, epochs=EPOCHS, **options)
    hk.nn.convert(twin, {"3": hk.WTA()})
    assert model[3].rule == hk.WTA()
    data = batches()
    for epoch in range(EPOCHS):
        data.seek(epoch * len(data))
        fall = (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        for x, labels in data:
            with hk.learning(twin, lr={"0": 0.2 * fall, "3": 0.3 * fall, "4": 0.1 * fall}, labels=labels):
                twin(x)
    for weight, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)


def test_layers_without_a_rate_stay():
    model = network()
    training.train(model, batches(), lr={"3": 0.1}, epochs=1)
    moved = [not torch.equal(*pair) for pair in zip(model.parameters(), network().parameters(), strict=True)]
    assert moved == [False, True, False]


def test_handlers_schedule_a_constant_rate():
    rates = []
    scheduler = state_param_scheduler.ExpStateScheduler(initial_value=0.5, gamma=0.5, param_name="lr")
    train(
        network(),
        decay="constant",
        handlers=[
            (Events.EPOCH_COMPLETED, scheduler),
            (Events.ITERATION_COMPLETED(every=6), lambda engine: rates.append(engine.state.lr)),
        ],
    )
    assert rates == [0.1, 0.25, 0.125, 0.0625]


def test_the_progress_bar_shows_metrics(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    engine = train(network(), progress=True)
    assert set(engine.state.metrics) == {"updates", "dead", "change"} and engine.state.metrics["updates"] == 24
    assert "updates=24" in capsys.readouterr().err


class Attached:
    """A handler with attach(engine)."""

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: setattr(engine.state, "was_attached", True))


def test_handlers_may_attach_themselves():
    assert train(network(), handlers=[Attached()]).state.was_attached


@pytest.mark.parametrize("stop", [1, 6, 9, 23])
def test_a_supervised_training_resumes_bit_for_bit(tmp_path, stop):
    """Momentum, running statistics and dropout's random numbers are part of the state."""

    def run(seed, stop=None, **options):
        torch.manual_seed(0)
        first = HebbianLinear(36, 8, rule=hk.SoftWTA())
        model = nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model[4].parameters(), lr=0.01)

        def interrupt(engine):
            if engine.state.iteration == stop:
                raise KeyboardInterrupt

        torch.manual_seed(seed)
        train(
            model,
            supervised_from="4",
            optimizer=optimizer,
            handlers=[(Events.GET_BATCH_STARTED, interrupt)],
            **options,
        )
        return model.state_dict().values()

    whole = run(seed=1)
    with pytest.raises(KeyboardInterrupt):
        run(seed=1, stop=stop, folder=tmp_path, save_every=1)
    assert all(map(torch.equal, run(seed=2, folder=tmp_path, resume=True), whole))


def test_a_training_of_another_kind_is_not_resumed(tmp_path):
    train(network(), tmp_path)
    for options, message in (
        ({"decay": "cosine"}, "must keep decay of checkpoint_24.safetensors, linear, got cosine"),
        ({"lr": 0.2}, r"must keep lr of checkpoint_24.safetensors, \{'0': 0.1, '3': 0.1, '4': 0.1\}, got \{'0': 0.2"),
        ({"dtype": torch.bfloat16}, "must keep dtype of checkpoint_24.safetensors, None, got torch.bfloat16"),
    ):
        model = network()
        options = {"lr": 0.1, "epochs": EPOCHS, "folder": tmp_path, "resume": True} | options
        with pytest.raises(ValueError, match=message):
            training.train(model, batches(), **options)
        assert all(map(torch.equal, model.parameters(), network().parameters()))
    model = nn.Sequential(network(), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="must be of such a training, got one without optimizer"):
        train(model, tmp_path, resume=True, supervised_from="1", optimizer=optimizer)


def test_a_checkpoint_without_a_dtype_is_of_none(tmp_path, monkeypatch):
    schedule = importlib.import_module("hebbkern.training.train").Schedule
    init = schedule.__init__

    def older(self, *arguments, **options):
        init(self, *arguments, **options)
        del self.settings["dtype"]

    with monkeypatch.context() as patch:
        patch.setattr(schedule, "__init__", older)
        train(network(), tmp_path)
    with pytest.raises(ValueError, match="must keep dtype"):
        train(network(), tmp_path, resume=True, dtype=torch.bfloat16)
    train(network(), tmp_path, resume=True)


def test_growing_layers_refuse_another_dtype_before_anything_learns():
    model = nn.Sequential(HebbianLinear(12, 6, rule=hk.Oja()), hk.continual.HebbCL(6, 5, normalise="none"))
    before = model[0].weight.clone()
    with pytest.raises(ValueError) as error:
        training.train(model, [random((4, 12))], lr=0.1, epochs=1, dtype=torch.bfloat16)
    assert str(error.value) == ('hebbkern.training: dtype must be None for "1", a HebbCL layer, got torch.bfloat16')
    assert torch.equal(model[0].weight, before)


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path):
    train(network(), tmp_path)
    model = network()
    model[4] = HebbianLinear(8, 5, rule=hk.Supervised())
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r'"4.weight" as checkpoint_24.safetensors has it, of shape \[3, 8\], got \[5'):
        train(model, tmp_path, resume=True)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("event", ["EPOCH_COMPLETED", "ITERATION_COMPLETED"])
@pytest.mark.parametrize("stop", [3, 12])
def test_what_handlers_make_of_the_rate_is_resumed(tmp_path, event, stop):
    """Stopped within the first epoch, and where an epoch ends, before the handlers of its end."""

    def fall(engine):
        engine.state.lr *= 0.7

    def interrupt(engine):
        if engine.state.iteration == stop:
            raise KeyboardInterrupt

    def run(model, *handlers, **options):
        handlers = [*handlers, (Events[event], fall)]
        train(model, decay="constant", handlers=handlers, **options)
        return model

    whole, stopped = run(network()), Events.EPOCH_COMPLETED if stop == 12 else Events.GET_BATCH_STARTED
    with pytest.raises(KeyboardInterrupt):
        run(network(), (stopped, interrupt), folder=tmp_path, save_every=1)
    assert all(map(torch.equal, run(network(), folder=tmp_path, resume=True).parameters(), whole.parameters()))


def optimizer_of(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


REFUSED = [
    ({"order": "random"}, 'order must be "together" or "greedy", got \'random\''),
    ({"decay": "step"}, 'decay must be "linear", "cosine" or "constant", got \'step\''),
    ({"epochs": {"3": 2}}, 'epochs must be a number unless order="greedy", got a dict'),
    ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
    ({"resume": True}, "resume must come with a folder for checkpoints, got no folder"),
    ({"save_every": 3}, "save_every must come with a folder for checkpoints, got no folder"),
    ({"save_every": 0}, "save_every must be a whole number of at least 1, got 0"),
    ({"lr": float("nan")}, "lr must be finite, got nan"),
    ({"lr": {"3": float("inf")}}, "lr must be finite, got inf"),
    ({"lr": {"1": 0.1}}, 'lr must match Hebbian layers ("0", "3", "4"), got "1"'),
    ({"supervised_from": "5"}, 'supervised_from must be a module of the model ("0", "1", "2", "3", "4"), got "5"'),
    ({"supervised_from": "4"}, 'optimizer must be given to train from "4" on, got None'),
    (
        {"supervised_from": "4", "optimizer": optimizer_of(nn.Linear(2, 2))},
        'optimizer must hold parameters of "4" or after it, got none',
    ),
    ({"dtype": 16}, "dtype must be torch.float32, float64, bfloat16 or float16, or None, got 16"),
    (
        {"optimizer": optimizer_of(nn.Linear(2, 2))},
        "supervised_from must name a module for the optimizer, got None",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[case[1] for case in REFUSED])
def test_wrong_settings_are_refused(options, message):
    model = network()
    with pytest.raises(ValueError) as error:
        training.train(model, batches(), **{"lr": 0.1, "epochs": 2} | options)
    assert str(error.value) == f"hebbkern.training: {message}"
    assert all(map(torch.equal, model.parameters(), network().parameters()))


def test_loaders_train_too(tmp_path):
    """torch's DataLoader; it cannot start anywhere, so no checkpoint within an epoch."""
    model, twin, x = network(), network(), random((50, 1, 6, 6), seed=3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(50) % 3), batch_size=20)
    engine = training.train(model, loader, lr=0.1, epochs=2, decay="constant")
    for _ in range(2):
        for first in (0, 20, 40):
            with hk.learning(twin, lr=0.1, labels=torch.arange(50)[first : first + 20] % 3):
                twin(x[first : first + 20])
    assert engine.state.iteration == 6 and all(map(torch.equal, model.parameters(), twin.parameters()))
    with pytest.raises(ValueError, match="save_every must be None for batches that cannot seek"):
        training.train(model, loader, lr=0.1, epochs=2, folder=tmp_path, save_every=1)
