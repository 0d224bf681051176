"""The training driver: schedule, seeded order, checkpoints, and resuming bit for bit."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear

training = pytest.importorskip("hebbkern.training", reason="pytorch-ignite is not installed", exc_type=ImportError)

EPOCHS = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        HebbianConv2d(1, 6, 3, rule=hk.WTA(patches="centred")),
        nn.ReLU(),
        nn.Flatten(),
        HebbianLinear(96, 8, rule=hk.KrotovHopfield()),
        HebbianLinear(8, 3, rule=hk.Teacher()),
    )


def batches(seed=0):
    return training.Batches(random((50, 1, 6, 6), seed=3), torch.arange(50) % 3, size=8, seed=seed)


def train(model, folder=None, **options):
    return training.train(model, batches(), lr=0.1, epochs=EPOCHS, folder=folder, **options)


def test_the_rate_falls_to_zero_by_epochs():
    rates = []
    engine = train(
        network(), handlers=[(training.engine.Events.ITERATION_COMPLETED, lambda e: rates.append(e.state.lr))]
    )
    want = [0.1 * (1 - epoch / EPOCHS) for epoch in range(EPOCHS) for _ in range(6)]
    assert rates == pytest.approx(want) and engine.state.iteration == 24


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
        started = training.engine.Events.ITERATION_STARTED
        train(part, tmp_path, save_every=1, handlers=[(started, interrupt)])
    assert not any(map(torch.equal, part.parameters(), whole.parameters()))
    engine = train(resumed, tmp_path, resume=True)
    assert engine.state.iteration == 24
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))


def test_checkpoints_after_each_epoch_and_two_stay(tmp_path):
    model = network()
    train(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_18.safetensors", "checkpoint_24.safetensors"]
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
    assert len(training.Batches(first, size=100)) == 1


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must hold a Hebbian layer"):
        train(nn.Linear(3, 3), tmp_path)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        training.train(network(), batches(), lr=0.1, epochs=0)
    with pytest.raises(ValueError, match=r"labels must be one a sample \(5\), got 4"):
        training.Batches(torch.zeros(5, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        training.Batches(torch.zeros(0, 2))
    train(network(), tmp_path)
    with pytest.raises(FileExistsError, match=r"must hold no checkpoints unless resuming, got checkpoint_24.safetensors"):
        train(network(), tmp_path)
    model = network()
    with pytest.raises(ValueError, match=r"of checkpoint_24.safetensors, \(4, 6\), got \(5, 6\)"):
        training.train(model, batches(), lr=0.1, epochs=5, folder=tmp_path, resume=True)
    assert all(map(torch.equal, model.parameters(), network().parameters()))


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['ignite'] = None; import hebbkern; import hebbkern.training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'" in done.stderr
