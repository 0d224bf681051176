"""HebbCL: state dicts and copies, and its use by the trainer, `learning` and scikit-learn."""

import copy
import pickle

import numpy as np
import pytest
import torch

import hebbkern as hk
from cases import random
from hebbcl_models import N, model_and_next, rows_of, same, stream, train_on
from hebbkern.continual import HebbCL


@pytest.mark.parametrize("supervised", [False, True])
def test_a_resumed_model_ends_with_the_same_bits(supervised, tmp_path):
    model, next_part = model_and_next(supervised)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    resumed = HebbCL(N, **({"per_class": 3} if supervised else {"neurons": 6}), lr=model.lr, threshold=model.threshold)
    resumed.start = model.start
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    copies = [resumed, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    width = model.width
    next_part(model)
    assert model.width > width
    for other in copies:
        assert other.width == width
        next_part(other)
        assert same(model, other)


def test_a_narrower_state_loads():
    model, _ = model_and_next(False)
    model.load_state_dict(HebbCL(N, 6).state_dict())
    assert same(model, HebbCL(N, 6))
    assert same(
        train_on(model, stream(3, dtype=torch.float32)),
        train_on(HebbCL(N, 6, lr=0.3, threshold=0.15), stream(3, dtype=torch.float32)),
    )


MISFITS = [
    ({"converged": None}, "HebbCL's state must hold weight, converged and classes"),
    ({"weight": torch.zeros(8, N + 1)}, "weight must be [width, 12], got shape [8, 13]"),
    (
        {"converged": torch.zeros(7, dtype=torch.bool)},
        "converged must have one entry for each of 8 neurons, got shape [7]",
    ),
    ({"classes": torch.zeros(1, dtype=torch.int64)}, "classes must be empty, got shape [1]"),
    (
        {"weight": torch.zeros(11, N), "converged": torch.zeros(11, dtype=torch.bool)},
        "max_neurons must be at least the 11",
    ),
]


@pytest.mark.parametrize(("changed", "message"), MISFITS, ids=[message for _, message in MISFITS])
def test_a_state_that_does_not_fit_changes_nothing(changed, message):
    model = train_on(HebbCL(N, 6, max_neurons=10, threshold=0.15, lr=0.3), stream(5, dtype=torch.float32))
    before = copy.deepcopy(model)
    state = {
        "weight": torch.zeros(8, N),
        "converged": torch.ones(8, dtype=torch.bool),
        "classes": torch.zeros(0),
    } | changed
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert message in str(error.value)
    assert same(model, before)


def test_reset_and_fit_restart_the_model():
    model, _ = model_and_next(False)
    model.reset()
    assert same(model, HebbCL(N, 6))
    x, y = random((30, N)).abs(), torch.arange(30) % 2
    model = HebbCL(N, per_class=3).fit(x, y)
    assert same(model.fit(x, y), HebbCL(N, per_class=3).partial_fit(x, y)) and model.width == 6


def test_it_learns_in_inference_mode_too():
    for supervised in (False, True):
        (model, next_part), (want, the_same) = model_and_next(supervised), model_and_next(supervised)
        restored = copy.deepcopy(model)
        with torch.inference_mode():
            next_part(model)
            restored.load_state_dict(model.state_dict())
        the_same(want)
        assert same(model, want) and same(restored, want)
        next_part(model), the_same(want), next_part(restored)
        assert same(model, want) and same(restored, want)


def test_storage_follows_a_larger_max_neurons():
    model = HebbCL(N, 6, max_neurons=9, threshold=1e9, lr=0.0)
    model.learn(random((3, N)).abs())
    assert model.width == 9
    model.set_params(max_neurons=40)
    model.learn(random((3, N)).abs())
    assert model.width == len(model.converged) == 12
    assert torch.equal(model.weight, train_on(HebbCL(N, 6, threshold=1e9, lr=0.0), [random((3, N)).abs()]).weight[:12])


def test_it_learns_inside_learning():
    x, want = stream(1, dtype=torch.float32)[0], HebbCL(N, 6, threshold=0.15)
    model = copy.deepcopy(want)
    with hk.learning(torch.nn.Sequential(model), lr=0.3):
        y = model(x)
    want.learn(x, lr=0.3)
    assert same(model, want) and torch.equal(y, want(x)) and not model.weight.requires_grad
    with pytest.raises(ValueError, match="renormalise"), hk.learning(model, into="grad"):
        model(x)
    plain = HebbCL(N, 6, normalise="none")
    with pytest.raises(ValueError, match='into="weight"'), hk.learning(plain, into="grad"):
        plain(x)


def test_it_fits_a_pipeline_of_scikit_learn():
    pipeline = pytest.importorskip("sklearn.pipeline", reason="scikit-learn is not installed")
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    x = torch.cat(stream(10, dtype=torch.float32)).numpy()
    y = np.repeat(np.arange(5), 32)
    model = pipeline.make_pipeline(HebbCL(N, 20, k=5, lr=0.3), KNeighborsClassifier(3))
    assert cross_val_score(model, x, y, cv=2).mean() > 0.5
    supervised = HebbCL(N, per_class=4, k=2, lr=0.3, start="samples")
    assert cross_val_score(supervised, x, y, cv=2, scoring="accuracy").mean() > 0.9
    assert cross_val_score(pipeline.make_pipeline(supervised), x, y, cv=2).mean() > 0.9
    assert not supervised.width and supervised.set_params(k=3).get_params()["k"] == 3
    with pytest.raises(ValueError, match=r"params must be among .*, got \['winners'\]"):
        supervised.set_params(winners=3)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        supervised.set_params(k=0)
    assert supervised.k == 3


def test_the_trainer_trains_it_and_resumes_it(tmp_path):
    """The bits of a plain loop, with metrics of a growing width, also when resumed from a checkpoint."""
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from ignite.engine import Events

    from hebbkern.training import Batches, train
    from hebbkern.training.checkpoint import last_checkpoint
    from hebbkern.training.handlers import Figures

    def trained(epochs, **options):
        model = torch.nn.Sequential(HebbCL(N, 6, threshold=0.15))
        batches = Batches(torch.cat(stream(dtype=torch.float32)), batch_size=16)
        return model[0], train(model, batches, lr=0.3, epochs=epochs, decay="constant", **options)

    want, by_hand = HebbCL(N, 6, threshold=0.15, lr=0.3), Batches(torch.cat(stream(dtype=torch.float32)), batch_size=16)
    for epoch in range(2):
        by_hand.seek(epoch * len(by_hand))
        train_on(want, (x for x, _ in by_hand))
    model, _ = trained(2, handlers=[Figures(torch.nn.Sequential(want))])
    assert same(model, want) and want.width > 6

    def halt(engine):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(2, folder=tmp_path, save_every=10, handlers=[(Events.ITERATION_COMPLETED(once=23), halt)])
    assert last_checkpoint(tmp_path).stem == "checkpoint_20"
    assert same(trained(2, folder=tmp_path, save_every=10, resume=True)[0], want)
    with pytest.raises(ValueError, match=r"fit checkpoint_\d+.safetensors: weight must be \[width, 5\], got shape"):
        train(
            torch.nn.Sequential(HebbCL(5)),
            Batches(torch.ones(240, 5), batch_size=16),
            lr=0.3,
            epochs=2,
            folder=tmp_path,
            resume=True,
        )


def test_the_trainer_trains_the_supervised_variant():
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    from hebbkern.training import Batches, train

    model, x, y = HebbCL(N, per_class=3), random((40, N)).abs(), torch.arange(40) % 2
    train(model, Batches(x, y, batch_size=10), lr=0.3, epochs=1, decay="constant")
    assert sorted(model.classes.tolist()) == [0, 1] and not torch.equal(
        model.weight, HebbCL(N, per_class=3, hebb=False).partial_fit(x, y).weight
    )
    train(model, Batches(x, y + 2, batch_size=10), lr=0.3, epochs=1, decay="constant")
    assert model.width == 12


def test_transform_and_predict_inside_learning_learn_nothing():
    model, x = HebbCL(N, 6), random((5, N)).abs()
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="no layer has learnt"), hk.learning(model, lr=0.3):
        model.transform(x), model.predict(x)
    assert same(model, before)


def test_partial_states_load_as_in_torch():
    model = torch.nn.Sequential(torch.nn.Linear(3, N), HebbCL(N, 6))
    state = {name: value + 1 for name, value in model.state_dict().items() if name.startswith("0.")}
    before = copy.deepcopy(model[1])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["1.weight", "1.converged", "1.classes"] and not unexpected and same(model[1], before)
    with pytest.raises(RuntimeError, match=r"weight must be \[width, 12\], got shape \[0, 12\]"):
        model[1].load_state_dict(HebbCL(N, per_class=3).state_dict())


def test_a_pickle_has_no_unused_storage():
    model = train_on(HebbCL(400, 6, threshold=1e9), [torch.rand(3, 400)])
    model.learn(torch.rand(3, 400))
    model.learn(torch.rand(3, 400))  # 24 rows of which 24 - the next 6 need 48
    model.learn(torch.rand(3, 400))
    assert len(pickle.dumps(model)) < 400 * 4 * model.width * 1.2


def test_metrics_are_of_neurons_from_the_beginning_of_the_epoch():
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    from hebbkern.training import hebbian_trainer
    from hebbkern.training.handlers import Figures

    model = HebbCL(N, 2, threshold=1e9, max_neurons=4, normalise="none")
    before, x = rows_of(model), torch.ones(3, N)
    engine = hebbian_trainer(model)
    engine.state.lr = 1.0
    Figures(model).attach(engine)
    engine.run([x], max_epochs=1)
    assert model.width == 4 and model.converged.tolist() == [True, True, False, False]
    assert engine.state.metrics["dead"] == 0 and engine.state.metrics["change"] == 0  # both have converged since
    model = HebbCL(N, 2, threshold=1e9, max_neurons=4, normalise="none", freeze=False)
    engine = hebbian_trainer(model)
    engine.state.lr = 1.0
    Figures(model).attach(engine)
    engine.run([x], max_epochs=1)
    moved = (1 - before).abs()[int(before.sum(1).argmax())].sum() / (2 * N)  # the winner went all the way to the ones
    assert engine.state.metrics["dead"] == 1 and abs(engine.state.metrics["change"] - moved) < 1e-6
