"""Readouts, probes, nearest neighbours, clusters and intervals."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern import evaluation
from hebbkern.evaluation import features, linear_readout, rectified_power


def clusters(count, seed):
    labels = torch.arange(count) % 3
    return random((3, 6), seed=9, scale=2.0)[labels] + random((count, 6), seed=seed), labels


def test_the_readout_separates_clusters_and_not_noise():
    train, labels = clusters(300, seed=1)
    test, test_labels = clusters(90, seed=2)
    readout = linear_readout(train, labels, test, test_labels)
    assert readout.test > 0.9 and readout.train > 0.9 and readout.held_out > 0.9 and readout.decay in (1e-5, 1e-4)
    assert linear_readout(random((300, 6)), labels, random((90, 6), seed=3), test_labels).test < 0.6


def test_the_test_set_decides_nothing():
    train, labels = clusters(60, seed=1)
    one = linear_readout(train, labels, train, labels)
    other = linear_readout(train, labels, train, (labels + 1) % 3)
    assert (one.decay, one.train, one.held_out) == (other.decay, other.train, other.held_out)
    assert one.test == one.train and one.test > 0.9 > other.test


def test_scale_and_constant_features_do_not_matter():
    train, labels = clusters(60, seed=1)
    changed = torch.cat([train * 1000, torch.ones(60, 1)], 1)
    plain, scaled = (linear_readout(x, labels, x, labels) for x in (train, changed))
    assert abs(plain.test - scaled.test) < 0.03


def test_rectified_power():
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0], [-1.0, 0.0], [2.0, 0.0]])
    assert torch.allclose(rectified_power(x, weight, 2.0), torch.tensor([[1.0, 0.0, 0.36]]))


class Forked(nn.Module):
    """Not a Sequential: two branches, one overwritten in place, and layers that a probe must leave alone."""

    def __init__(self):
        super().__init__()
        self.one = hk.nn.HebbianConv2d(1, 6, 3, rule=hk.WTA(patches="centred"))
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.two = hk.nn.HebbianLinear(96, 10, rule=hk.KrotovHopfield())
        self.last = nn.Linear(10, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        first = self.one(x)
        kept = first.abs()
        first.zero_()
        return self.last(self.drop(self.two(self.norm(kept).flatten(1))))


def forked():
    torch.manual_seed(0)
    model = Forked()
    model.norm.eval()
    return model.requires_grad_(True)


def images(count, seed):
    labels = torch.arange(count) % 3
    return random((3, 1, 6, 6), seed=9, scale=1.5)[labels] + random((count, 1, 6, 6), seed=seed), labels


def snapshot(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = list(model.modules())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
    settings = [module.training for module in modules], [p.requires_grad for p in model.parameters()], hooks
    return state, settings, [p.grad for p in model.parameters()], torch.get_rng_state()


def assert_untouched(model, before):
    after = snapshot(model)
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
    assert after[1] == before[1] and after[2] == before[2] and torch.equal(after[3], before[3])


def evaluator(model, *arguments, **options):
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    options = {"epochs": 20, "lr": 0.02, "batch_size": 32} | options
    return evaluation.HebbianEvaluator(model, *arguments, **options)


def test_an_evaluator_learns_from_features_and_leaves_the_model_alone():
    model, train, test = forked(), images(300, seed=1), images(90, seed=2)
    before = snapshot(model)
    judge = evaluator(model, "one")
    score = judge.run(train, test)
    assert_untouched(model, before)
    assert min(score.train, score.held_out, score.test) > 0.9 and score.features == 96 and score.cached == "float32"
    assert len(score.history) == score.epochs <= 20 and score.history[0]["lr"] == 0.02
    with torch.no_grad():
        x = torch.nn.functional.conv2d(test[0], model.one.weight)
        accuracy = (judge.head(x).argmax(1) == test[1]).double().mean().item()
    assert accuracy == score.test
    noise = images(300, seed=1)[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert evaluator(model, "one").run((train[0], noise), test).test < 0.7


def test_an_evaluator_seeds_no_device_but_the_models(monkeypatch):
    def seeded(*arguments):
        raise AssertionError("CUDA was seeded")

    model = forked()
    for name in ("manual_seed", "manual_seed_all"):  # what torch.manual_seed calls, GPU or not
        monkeypatch.setattr(torch.cuda, name, seeded)
    evaluator(model, "one", epochs=1).run(images(30, seed=1), images(30, seed=2))


def test_an_evaluator_is_seeded_and_takes_batches_and_other_heads():
    model, train, test = forked(), images(100, seed=1), images(30, seed=2)
    head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(3))
    runs = []
    for source in (train, list(zip(train[0].split(17), train[1].split(17), strict=True))):
        torch.rand(3)
        runs.append(evaluator(model, "one", head=head, transform=torch.relu, seed=4).run(source, test))
    assert runs[0] == runs[1] and isinstance(head[2], nn.LazyLinear)
    assert (
        evaluator(model, "one", head=nn.Sequential(nn.Flatten(), nn.Linear(96, 3)), seed=5).run(train, test) != runs[0]
    )


def test_features_are_kept_where_they_fit():
    train, test = images(100, seed=1), images(30, seed=2)
    whole = 100 * 96 * 4
    kept, half, none = (
        evaluator(forked(), "one", memory=m).run(train, test) for m in (whole, whole - 1, whole // 2 - 1)
    )
    assert (kept.cached, half.cached, none.cached) == ("float32", "bfloat16", "no")
    assert kept.history == none.history and abs(kept.history[-1]["loss"] - half.history[-1]["loss"]) < 0.05
    source = list(zip(train[0].split(40), train[1].split(40), strict=True))
    assert evaluator(forked(), "one", memory=whole - 1).run(source, test) == half
    with pytest.raises(ValueError, match=r"memory must hold the features in bfloat16 \(19200 bytes\), got 19199"):
        evaluator(forked(), "one", memory=whole // 2 - 1).run([train], test)


def test_features_are_computed_once_and_the_test_set_is_read_once():
    model, train, test = forked(), images(100, seed=1), images(64, seed=2)
    read = []
    evaluator(model, "last", epochs=3).run(train, ((read.append(1) or x, labels) for x, labels in [test]))
    assert model.calls == 4 + 2 and read == [1]  # batches of 32 of 100, then of 64, and none an epoch


def test_early_stopping_and_plateaus_follow_the_held_out_part():
    train, labels = images(100, seed=1)
    noise = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    score = evaluator(forked(), "one", epochs=100, patience=6).run((train, noise), (train, noise))
    losses = [row["loss"] for row in score.history]
    assert score.held_out < 0.5  # chance: the labels are noise
    assert score.test == pytest.approx(0.9 * score.train + 0.1 * score.held_out)  # every sample of all three
    assert score.epochs < 100 and score.epochs == losses.index(min(losses)) + 1 + 6
    rates = [row["lr"] for row in score.history]
    assert rates[-1] == pytest.approx(0.02 * 0.2) and rates[0] == 0.02
    assert score.held_out == score.history[losses.index(min(losses))]["accuracy"]


def test_an_attached_evaluator_measures_every_other_epoch():
    engines = pytest.importorskip("ignite.engine", reason="pytorch-ignite is not installed")
    model, measured = forked(), []
    engine = engines.Engine(lambda engine, batch: None)
    options = {"train": images(60, seed=1), "validation": images(30, seed=2)}
    evaluator(model, "one", epochs=3).attach(engine, every=2, name="probe", **options)
    engine.add_event_handler(engines.Events.EPOCH_COMPLETED, lambda e: measured.append(e.state.metrics.get("probe")))
    engine.run([0], max_epochs=4)
    want = evaluator(model, "one", epochs=3).run(options["train"], options["validation"])
    assert measured == [None, want.test, want.test, want.test] and engine.state.metrics["probe_train"] == want.train


@pytest.mark.filterwarnings("ignore:.*backpropagation trains")
def test_an_evaluation_inside_learning_does_not_learn():
    model, data = forked(), images(30, seed=1)
    before = snapshot(model)
    with pytest.warns(UserWarning, match="no layer has learnt"), hk.learning(model, lr=0.1):
        evaluation.linear_probes(model, data, data, iterations=2)
    assert_untouched(model, before)


def test_probes_are_readouts_of_each_layer_in_one_pass():
    model, train, test = forked(), images(100, seed=1), images(30, seed=2)
    before = snapshot(model)
    probes = evaluation.linear_probes(model, train, test, batch_size=50)
    assert_untouched(model, before)
    assert list(probes) == ["one", "two"] and model.calls == 2 + 1
    with torch.no_grad():
        features = [torch.nn.functional.conv2d(x, model.one.weight) for x, _ in (train, test)]
    want = linear_readout(features[0].relu().flatten(1), train[1], features[1].relu().flatten(1), test[1])
    assert probes["one"] == want
    whole = evaluation.linear_probes(model, train, test, activation=None)
    assert whole["one"] == linear_readout(features[0].flatten(1), train[1], features[1].flatten(1), test[1])
    raw = evaluation.linear_probes(model, train, test, ["one"], activation=None, most=6 * 2 * 2 + 5, pool="max")
    small = [torch.nn.functional.max_pool2d(x, 2).flatten(1) for x in features]
    assert raw["one"] == linear_readout(small[0], train[1], small[1], test[1])


def test_batches_without_labels_are_named():
    (x, labels), message = images(30, seed=2), "each batch must be a pair .x, labels., got "
    for batches, got in (x, "Tensor"), ([(x,)], "1 parts"), ((x.numpy(), labels.numpy()), "ndarray"):
        with pytest.raises(ValueError, match=message + got):
            evaluation.linear_probes(forked(), (x, labels), batches)


def test_a_model_that_catches_errors_is_read_too():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last, self.failed = hk.nn.HebbianLinear(4, 3, rule=hk.WTA()), nn.Linear(3, 3), 0

        def forward(self, x):
            try:
                return self.last(self.inner(x))
            except Exception:
                self.failed += 1

    model, data = Careful(), (random((30, 4)), torch.arange(30) % 3)
    assert list(evaluation.linear_probes(model, data, data, ["inner", "inner"], iterations=2)) == ["inner"]
    assert model.failed == 0
    with pytest.raises(ValueError, match="layers must name one layer or more, got none"):
        evaluation.linear_probes(model, data, data, [])


def test_taps_keep_what_is_overwritten_later():
    model, (x, _) = forked(), images(5, seed=1)
    with features.taps(model, ["one", "last"]) as read:
        outputs = read(x)
    with torch.no_grad():
        want = torch.nn.functional.conv2d(x, model.one.weight)
    assert torch.equal(outputs["one"], want) and outputs["last"].shape == (5, 3)


def test_a_layer_that_is_not_there_is_named():
    data = images(30, seed=1)
    with pytest.raises(ValueError, match=r'layer must be a module of the model \("one", .*\), got "three"'):
        evaluation.linear_probes(forked(), data, data, ["three"])
    model = forked()
    model.spare = nn.Linear(2, 2)
    before = snapshot(model)
    with pytest.raises(ValueError, match='layer must be one that the data reaches, got "spare"'):
        evaluation.linear_probes(model, data, data, ["spare", "one"])
    assert_untouched(model, before)
    with pytest.raises(ValueError, match=r"labels must be one a sample \(30\), got \[29\]"):
        evaluation.linear_probes(model, (data[0], data[1][1:]), data)
    with pytest.raises(ValueError, match="model must hold a Hebbian layer"):
        evaluation.linear_probes(nn.Linear(2, 2), data, data)


def test_random_filters_are_alike_in_distribution_only():
    model = nn.Sequential(hk.nn.HebbianLinear(100, 400, rule=hk.WTA()), nn.Linear(400, 3))
    torch.nn.init.normal_(model[0].weight, 2.0, 0.5, generator=torch.Generator().manual_seed(0))
    weight = model[0].weight.clone()
    one, same, other = (evaluation.randomised(model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(model[0].weight, weight) and torch.equal(one[1].weight, model[1].weight)
    assert torch.equal(one[0].weight, same[0].weight) and not torch.equal(one[0].weight, other[0].weight)
    assert abs(one[0].weight.mean() - 2) < 0.02 and abs(one[0].weight.std() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([one[0].weight.flatten(), weight.flatten()]))[0, 1]) < 0.03
    drawn = evaluation.randomised(model, layers=["1"], draw=lambda w, g: nn.init.uniform_(w, 5, 6, generator=g))
    assert drawn[1].weight.min() >= 5 and torch.equal(drawn[0].weight, weight)
    with pytest.raises(ValueError, match='layers must be modules with a weight, got "2"'):
        evaluation.randomised(model, layers=["2"])


def probed():
    return nn.Sequential(hk.nn.HebbianLinear(6, 3, rule=hk.WTA()))


def measures(x, labels):
    """Each measure of features, on x to fit and on x to test."""
    torch.manual_seed(0)
    model, images = probed(), (x, labels)
    yield "readout", lambda: linear_readout(x, labels, x, labels)
    yield "probes", lambda: evaluation.linear_probes(model, images, images)
    yield "knn", lambda: evaluation.knn(x, labels, x, labels, 1)
    yield "clusters", lambda: evaluation.cluster_accuracy(x, labels, 2, test=x, test_labels=labels, starts=1)
    yield "evaluator", lambda: evaluation.HebbianEvaluator(model, "0", epochs=1).run(images, images)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(number):
    x, labels = clusters(60, seed=1)
    good = x.clone()
    x[7, 2] = number
    for train, test, name in ((x, good, "train"), (good, x, "test")):
        for measure in (linear_readout, evaluation.knn):
            with pytest.raises(ValueError, match=f"{name} must be finite, got a NaN or an infinity"):
                measure(train, labels, test, labels)
        with pytest.raises(ValueError, match=f"{name} must be finite, got a NaN or an infinity"):
            evaluation.linear_probes(probed(), (train, labels), (test, labels), activation=None)


def test_labels_take_memory_by_their_number_not_by_their_size():
    """Labels near 10^9 are classes as 0, 1 and 2 are."""
    x, labels = clusters(60, seed=1)
    named, large = (dict(measures(x, each)) for each in (labels, labels + 10**9))
    for name in ("readout", "probes", "knn", "clusters"):
        assert large[name]() == named[name]()
    with pytest.raises(ValueError, match=r"labels must be below 1000 .*, got 1000000002"):
        large["evaluator"]()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y: torch.where(y == 2, -1, y), r"must be from 0 to 2\^63 - 1, got -1"),
        (lambda y: (y - 1).to(torch.uint64), rf"must be from 0 to 2\^63 - 1, got {2**64 - 1}"),
        (lambda y: y + 0.5, "must be whole numbers, got float32"),
        (lambda y: y[1:], "must be one a sample"),
    ],
)
def test_labels_that_name_no_class_are_refused(wrong, message):
    x, labels = clusters(60, seed=1)
    for name, measure in measures(x, wrong(labels)):
        with pytest.raises(ValueError, match=f"labels {message}"):
            pytest.fail(f"{name}: {measure()}")


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_knn_is_that_of_scikit_learn(similarity):
    neighbours = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    labels, test_labels = torch.arange(300) % 3, torch.arange(101) % 3
    train = random((3, 6), seed=9)[labels] + random((300, 6), seed=1) + 20
    test = random((3, 6), seed=9)[test_labels] + random((101, 6), seed=2) + 20
    for k in (1, 2, 10):
        judge = neighbours.KNeighborsClassifier(k, metric=similarity, algorithm="brute")
        want = judge.fit(train.double().numpy(), labels.numpy()).score(test.double().numpy(), test_labels.numpy())
        got = evaluation.knn(train, labels, test, test_labels, k, similarity=similarity, chunk=40)
        assert got == pytest.approx(want, abs=1e-9) and 0.4 < got < 1
    with pytest.raises(ValueError, match="k must be 1 to the 300 training samples, got 301"):
        evaluation.knn(train, labels, test, test_labels, 301)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, None], r"train must be \[n, inputs\], such as x.flatten\(1\), got \[4, 1, 3\]"),
        (lambda x: x[:, :2], "test must have train's 2 inputs, got 3"),
        (lambda x: x / 0, "train must be finite, got a NaN or an infinity"),
    ],
)
def test_knn_names_features_that_do_not_fit(change, message):
    x, labels = random((4, 3)), torch.arange(4)
    with pytest.raises(ValueError, match=message):
        evaluation.knn(change(x), labels, x, labels, 1)


def test_features_that_carry_a_gradient_are_read_too():
    x, labels = clusters(60, seed=1)
    carrying = (x.clone().requires_grad_() * 1, labels) * 2
    assert linear_readout(*carrying) == linear_readout(x, labels, x, labels)
    assert evaluation.knn(*carrying) == evaluation.knn(x, labels, x, labels)


def test_knn_decides_ties_for_the_lower_class():
    train, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1, 0, 0, 1])
    assert evaluation.knn(train, labels, torch.tensor([[1.6]]), torch.tensor([0]), 4) == 1.0


def test_clusters_are_named_by_majority_or_one_to_one():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    spots = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    where = torch.tensor([0] * 6 + [1] * 6 + [2] * 6)
    features = spots[where] + random((18, 2), scale=0.1)
    # Two spots of mostly class 0 (5 and 4 of 6), one of class 1: by majority both are 0, one to one only one of them.
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 2, 1, 1, 1, 1, 1, 1])
    assert evaluation.cluster_accuracy(features, labels, 3) == pytest.approx(15 / 18)
    assert evaluation.cluster_accuracy(features, labels, 3, assignment="one_to_one") == pytest.approx((5 + 2 + 6) / 18)
    test = {"test": spots, "test_labels": torch.tensor([0, 0, 2])}
    assert evaluation.cluster_accuracy(features, labels, 3, seed=1, **test) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="must be given both or not at all"):
        evaluation.cluster_accuracy(features, labels, 3, test=spots)


def test_an_interval_is_students():
    pytest.importorskip("scipy", reason="scipy is not installed")
    result = evaluation.interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305 * np.sqrt(5 / 3) / 2  # Student's t of 3 degrees of freedom at 97.5 %, from a table
    assert result == pytest.approx((2.5, np.sqrt(5 / 3), 2.5 - half, 2.5 + half, 4))
    assert evaluation.interval([1.0, 3.0], confidence=0.9).high == pytest.approx(2 + 6.313751515)
    with pytest.raises(ValueError, match=r"values must be at least two finite numbers, got \[1.0\]"):
        evaluation.interval([1.0])


@pytest.mark.slow(12)
@pytest.mark.parametrize(
    ("absent", "call", "message"),
    [
        ("sklearn.cluster", "e.cluster_accuracy(torch.zeros(4, 2), torch.zeros(4), 2)", "scikit-learn .*hebbkern.eval"),
        ("scipy.stats", "e.interval([1, 2])", "scipy .*hebbkern.eval"),
        ("ignite.engine", "e.HebbianEvaluator", "pytorch-ignite .*hebbkern.train"),
    ],
)
def test_a_missing_extra_is_named(absent, call, message):
    code = f"import sys, torch; sys.modules['{absent}'] = None; import hebbkern.evaluation as e; {call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(f"ImportError: hebbkern.evaluation: {message}", done.stderr), done.stderr
