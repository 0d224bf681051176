"""The loop of examples.papers.dhp_softmax: steps, the end of tasks, samples that stay unread, runs side by side."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.papers.dhp_softmax import recipes, training
from examples.papers.dhp_softmax.networks import Heads, Network, TwiceLinear, perceptron
from examples.papers.dhp_softmax.training import Benchmark, Best, Learner, Settings, learn, side_by_side
from hebbkern.continual.consolidation import Consolidation
from hebbkern.continual.streams import Task
from hebbkern.nn import DHPLinear

FAST = Settings(batch=8, epochs=2, lr=0.1)
CPU = torch.device("cpu")
GENERATOR = torch.Generator().manual_seed(0)


def task(count, t=0, inputs=3, seed=0):
    """Standard normal inputs, each shifted by its label, which means another in every second task."""
    labels = torch.arange(count) % 2
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed)) + 3 * F.one_hot(
        (labels + t) % 2, inputs
    )
    return Task(x, labels, torch.arange(count), (0, 1))


def small(tasks=3, inputs=3, **parts):
    """Tasks of two classes, 20 samples to learn from and 10 of each other kind."""
    sets = {"train": 20, "validation": 10, "test": 10}
    made = {
        kind: [task(count, t, inputs, 10 * t + i) for t in range(tasks)] for i, (kind, count) in enumerate(sets.items())
    }
    make = lambda heads, readout: Network(perceptron(inputs, 4), 4, Heads(heads, (2,) * tasks), readout)  # noqa: E731
    return Benchmark("small", **(made | parts), network=make)


def last(run):
    *_, found = run
    return found


def test_readouts_are_those_of_the_settings():
    make = training.readout(Settings(dhp=True, eta=0.5, per_connection=True))
    layer = make(6, 4)
    assert isinstance(layer, DHPLinear) and torch.equal(layer.eta, torch.full((4, 6), 0.5))
    assert isinstance(training.readout(Settings())(6, 4), TwiceLinear)
    assert type(training.readout(Settings(twice=False))(6, 4)) is nn.Linear
    for settings in (Settings(dhp=True), Settings(), Settings(twice=False)):  # from listing 1: fan in is the classes
        layer = training.readout(replace(settings, start="classes"))(400, 4)
        for weight in (layer.weight, getattr(layer, "second", layer.weight)):
            assert 0.49 < weight.abs().max() < 0.5
    with pytest.raises(ValueError, match="method must be one of Finetune, Scratch, SI, Online EWC, MAS, got EWC"):
        Learner(small(), Settings(method="EWC"), 0, CPU)


class Scripted:
    """A learner whose validation accuracies are given."""

    def __init__(self, accuracies):
        self.network, self.accuracies = nn.ModuleList([DHPLinear(3, 2)]), iter(accuracies)
        self.method = Consolidation()

    def accuracy(self, task, x, labels):
        return torch.tensor(next(self.accuracies))


def ends(best, epoch):
    """Whether the task ends after this epoch."""
    steps = best.ends(0, epoch, (None, None))
    assert next(steps) is None
    with pytest.raises(StopIteration) as end:
        next(steps)
    return end.value.value


def test_the_best_epoch_comes_back_with_its_trace():
    learner = Scripted([0.5, 0.9, 0.9, 0.2])
    (layer,) = learner.network
    best = Best(learner, Settings(epochs=1, patience=2))
    ended = []
    for epoch in range(4):
        with torch.no_grad():
            for tensor in learner.network.state_dict().values():
                tensor.fill_(epoch)
        ended.append(ends(best, epoch))
    assert ended == [False, False, False, True]  # the second 0.9 is no gain
    best.restore()
    for tensor in (layer.weight, layer.alpha, layer.eta, layer.trace):
        assert (tensor == 1).all()


@pytest.mark.parametrize(
    ("gains", "epochs", "patience", "wanted"),
    [(4, 2, 3, 7), (1, 5, 3, 5), (99, 2, 3, 12), (4, 2, 0, 2)],  # by patience, not before `epochs`, by `most`, none
)
def test_a_task_ends_after_so_many_epochs_without_gain(monkeypatch, gains, epochs, patience, wanted):
    calls = []

    def accuracy(self, task, x, labels):
        if x is validation:
            calls.append(task)
            return torch.tensor(min(calls.count(task), gains) / 100)
        return torch.tensor(0.0)

    benchmark = small(tasks=2)
    validation, whole = torch.zeros(1), training.whole
    monkeypatch.setattr(Learner, "accuracy", accuracy)
    monkeypatch.setattr(
        training, "whole", lambda of, device: (validation, None) if of in benchmark.validation else whole(of, device)
    )
    settings = replace(FAST, epochs=epochs, patience=patience, most=12)
    assert last(learn(benchmark, settings, 0))["epochs"] == [wanted, wanted]
    assert len(calls) == (2 * wanted if patience else 0)


@pytest.mark.parametrize("dhp", [False, True])
@pytest.mark.parametrize("method", ["Finetune", "SI", "Online EWC"])
def test_the_next_task_starts_from_the_best_epoch(monkeypatch, dhp, method):
    """Where that is the first one, all is as if there had been one alone, SI's path too."""
    benchmark, settings = small(), replace(FAST, dhp=dhp, epochs=1, method=method, strength=1.0)
    importances, after = [], training.consolidation

    def kept(*arguments):
        importances.append(after(*arguments))
        return importances[-1]

    monkeypatch.setattr(training, "consolidation", kept)
    closed = [x for x, _ in (training.whole(of, CPU) for of in benchmark.validation)]
    accuracy, calls = Learner.accuracy, []

    def scripted(self, t, x, labels):
        if any(torch.equal(x, other) for other in closed):
            calls.append(t)
            return torch.tensor(1.0 / calls.count(t))
        return accuracy(self, t, x, labels)

    wanted = last(learn(benchmark, settings, 0))
    monkeypatch.setattr(Learner, "accuracy", scripted)
    found = last(learn(benchmark, replace(settings, patience=2), 0))
    assert found["epochs"] == [3, 3, 3] and found["R"] == wanted["R"]
    if method != "Finetune":
        torch.testing.assert_close(importances[1].importance, importances[0].importance, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["Finetune", "SI", "Online EWC", "MAS"])
def test_a_step_follows_loss_and_penalty_the_plastic_part_the_loss_alone(method):
    """Momenta do not outlast a task."""
    settings = replace(FAST, method=method, strength=3.0, dhp=True, heads="one", momentum=0.9)
    learner = Learner(small(), settings, 0, CPU)
    learner.begin()
    x, labels = task(20)[:]
    for _ in range(5):
        learner.step(x, labels, 0)
    learner.method.after_task(learner.network, [(x, labels)], lambda network, x: network.loss_outputs(x, 0))
    x, labels = task(20, 1, seed=1)[:]
    learner.step(x, labels, 1)  # away from where the penalty is 0
    learner.begin()
    parameters, trace = dict(learner.network.named_parameters()), learner.network.readouts[0].trace
    before = trace.clone()
    loss = learner.network.loss(x, labels, 1)
    trace.copy_(before)
    own = dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
    penalty = learner.method.penalty(learner.network)
    held = learner.network.slow_weights() if method != "Finetune" else []
    pulls = (
        dict(zip(held, torch.autograd.grad(penalty, [parameters[name] for name in held]), strict=True)) if held else {}
    )
    assert all(pull.abs().max() > 1e-4 for pull in pulls.values())
    wanted = {name: p.detach() - 0.1 * (own[name] + pulls.get(name, 0)) for name, p in parameters.items()}
    learner.step(x, labels, 1)
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), wanted[name])


def test_the_first_step_of_adam_is_its_rate_whatever_the_gradient():
    learner = Learner(small(), replace(FAST, optimizer="Adam", lr=0.01, dhp=True), 0, CPU)
    learner.begin()
    before = {name: p.detach().clone() for name, p in learner.network.named_parameters()}
    learner.step(*task(20)[:], 0)
    for name, parameter in learner.network.named_parameters():
        assert (parameter - before[name]).abs().max().item() == pytest.approx(0.01, rel=0.01)


def test_a_method_gets_the_task_and_the_outputs_that_the_loss_is_over(monkeypatch):
    benchmark, right, steps = small(), [], []

    class Checked(Consolidation):
        def after_task(self, model, data, outputs):
            ((x, labels),) = data
            t = len(right)
            wanted, own = benchmark.train[t][:]
            right.append(torch.equal(x, wanted) and torch.equal(labels, own))
            right[-1] &= torch.equal(outputs(model, x), model.loss_outputs(x, t)) and not torch.equal(*both(model, x))

    def both(model, x):
        return model.loss_outputs(x, 0), model.loss_outputs(x, 1)

    monkeypatch.setattr(training, "consolidation", lambda settings, network, seed: Checked())
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, x, labels, t: steps.append((t, x)) or step(self, x, labels, t))
    for seed in (0, 0, 1):
        right.clear()
        last(learn(benchmark, replace(FAST, heads="own"), seed))
        assert right == [True, True, True]
    x, passes = [part[:][0] for part in benchmark.train], []
    for first in range(0, len(steps), 3):  # 8, 8 and 4 of 20 samples
        t, batches = steps[first][0], torch.cat([batch for _, batch in steps[first : first + 3]])
        order = [(batch == x[t]).all(1).nonzero().item() for batch in batches]
        assert sorted(order) == list(range(20))
        passes.append(order)
    assert passes[:6] == passes[6:12]  # three tasks, two epochs; the same seed
    assert len({tuple(order) for order in passes}) == 12  # others with another epoch, task or seed


@pytest.mark.parametrize("per_sample, sizes", [(True, [20]), (False, [8, 8, 4])])
def test_importances_are_of_samples_or_of_batches(monkeypatch, per_sample, sizes):
    counts = []
    monkeypatch.setattr(
        Consolidation, "after_task", lambda self, model, data, outputs: counts.append([len(x) for x, _ in data])
    )
    last(learn(small(), replace(FAST, per_sample=per_sample), 0))
    assert counts == [sizes] * 3
    method = training.consolidation(
        replace(FAST, method="MAS", per_sample=per_sample), Learner(small(), FAST, 0, CPU).network, 0
    )
    assert method.per_sample == per_sample


@pytest.mark.parametrize("bounded, wanted", [(True, (0.0, 1.0)), (False, None)])
def test_eta_is_kept_within_its_bounds(bounded, wanted):
    learner = Learner(small(), replace(FAST, dhp=True, bounded=bounded, heads="own"), 0, CPU)
    learner.begin()
    below, above = learner.network.readouts[0].eta, learner.network.readouts[1].eta
    with torch.no_grad():
        below.fill_(-0.5), above.fill_(1.5)
    for t in range(2):
        learner.step(*task(20, t)[:], t)
    found = below.item(), above.item()
    assert found == wanted if bounded else found[0] < -0.1 and found[1] > 1.1


def test_of_a_stream_the_first_tasks_are_learnt():
    found, whole = (last(learn(small(), replace(FAST, tasks=count), 0)) for count in (2, None))
    assert found["R"] == [row[:2] for row in whole["R"][:2]] and len(found["epochs"]) == 2


@pytest.mark.parametrize("method", ["SI", "Online EWC", "MAS"])
def test_methods_hold_the_slow_weights(method):
    learner = Learner(small(), replace(FAST, method=method, dhp=True, samples=7), 0, CPU)
    assert list(learner.method.names) == learner.network.slow_weights()


class Closed:
    """A set that must not be read."""

    samples = 10

    def __getitem__(self, positions):
        raise AssertionError("a closed set was opened")


@pytest.mark.parametrize("method", ["Finetune", "SI", "Online EWC", "MAS", "Scratch"])
def test_what_is_not_asked_for_stays_closed(method):
    settings, closed = replace(FAST, method=method, strength=1.0, dhp=method != "Scratch"), [Closed()] * 3
    shown = small()
    tested = last(learn(small(validation=closed, test=shown.validation), settings, 0, on="test"))
    validated = last(learn(small(test=closed), settings, 0, on="validation"))
    assert tested["R"] == validated["R"] and tested["on"] == "test" and validated["on"] == "validation"
    stopped = last(learn(small(test=closed), replace(settings, patience=1), 0, on="validation"))
    assert all(len(row) == 3 for row in stopped["R"])


def test_accuracies_are_of_the_network_after_each_task():
    """Each in percent, of tasks learnt by then, by the head of the task; the same seed the same run."""
    benchmark, learners = small(), []
    settings = replace(FAST, heads="own", lr=0.3)

    class Seen(Learner):
        def __init__(self, *given):
            super().__init__(*given)
            learners.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Learner", Seen)
        run = last(learn(benchmark, settings, 5))
    (learner,) = learners
    for j, of in enumerate(benchmark.test):
        x, labels = of[:]
        hits = learner.network(x, j).argmax(1) == labels
        assert run["R"][2][j] == pytest.approx(100 * hits.float().mean().item(), abs=1e-3)
    assert [[value is None for value in row] for row in run["R"]] == [[j > i for j in range(3)] for i in range(3)]
    assert run["seed"] == 5 and run["epochs"] == [2, 2, 2] and "plastic" not in run
    again = last(learn(benchmark, settings, 5))
    assert again["R"] == run["R"]


def test_looks_at_the_plastic_part(monkeypatch):
    monkeypatch.setattr(training, "BLOCK", 1)
    monkeypatch.setattr(training, "TURN", 2)
    run = last(learn(small(), replace(FAST, dhp=True, eta=0.125, lr=1e-12), 0))
    assert len(run["plastic"]) == 3 * 2 * 2  # tasks, epochs, steps 1 and 3 of 3
    eta, hebb, alpha = np.transpose(run["plastic"])
    assert (eta == 0.125).all() and len(set(alpha)) == 1 and hebb[-1] > hebb[0] > 0


def test_the_plastic_part_is_recorded_for_the_first_seed_of_dhp_alone():
    for settings, seed in ((replace(FAST, dhp=True), 1), (replace(FAST, dhp=True, method="SI"), 0), (FAST, 0)):
        assert "plastic" not in last(learn(small(), settings, seed))


def test_scratch_starts_anew(monkeypatch):
    made, steps = [], []

    class Seen(Learner):
        def __init__(self, *given):
            super().__init__(*given)
            made.append((self, [p.detach().clone() for p in self.network.parameters()]))

        def step(self, x, labels, task):
            steps.append((self, task))
            super().step(x, labels, task)

    monkeypatch.setattr(training, "Learner", Seen)
    run = last(learn(small(), replace(FAST, method="Scratch"), 0))
    learners = [learner for learner, _ in made]
    assert len(learners) == 3
    assert list(dict.fromkeys(steps)) == [(learner, t) for t, learner in enumerate(learners)]
    starts = [weights[0] for _, weights in made]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
    assert [[value is None for value in row] for row in run["R"]] == [[i != j for j in range(3)] for i in range(3)]


@pytest.mark.parametrize("at_once", [1, 3])
def test_runs_side_by_side_all_end(at_once):
    going = []

    def run(index):
        going.append(index)
        assert len(going) <= at_once
        for _ in range(index % 4):
            yield None
        going.remove(index)
        yield {"index": index}

    found = [result["index"] for result in side_by_side(map(run, range(9)), "cpu", at_once)]
    assert sorted(found) == list(range(9)) and not going
    assert (found == list(range(9))) == (at_once == 1)


def test_runs_do_not_hang_on_those_beside_them():
    runs = [learn(small(), replace(FAST, method=method, strength=1.0, dhp=True), 0) for method in recipes.METHODS]
    alone = [
        last(learn(small(), replace(FAST, method=method, strength=1.0, dhp=True), 0)) for method in recipes.METHODS
    ]
    beside = {found["settings"].method: found for found in side_by_side(runs, "cpu", 4)}
    for found in alone:
        assert beside[found["settings"].method]["R"] == found["R"]
        assert beside[found["settings"].method].get("plastic") == found.get("plastic")


@pytest.mark.parametrize("dhp", [False, True])
def test_a_run_that_diverges_says_so_and_the_others_go_on(dhp):
    runs = [learn(small(), replace(FAST, dhp=dhp, lr=lr), 0) for lr in (1e30, 0.1)]
    found = {run["settings"].lr: run for run in side_by_side(runs, "cpu", 2)}
    assert found[1e30]["R"] is None and "finite" in found[1e30]["error"] and found[1e30]["seed"] == 0
    assert found[0.1]["R"] and "error" not in found[0.1]
    broken = small(train=[task(20, inputs=5)] * 3)  # too many inputs for the network: no divergence
    with pytest.raises(RuntimeError, match="shapes"):
        last(learn(broken, FAST, 0))
