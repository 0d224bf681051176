"""ReviveDead: neurons that do not win restart on badly represented samples, by seed and resumable."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.evaluation.measures import wins
from hebbkern.nn import HebbianConv2d, HebbianLinear
from trainings import training

Events = training.engine.Events
CLUSTERS = 3 * F.normalize(random((20, 30)), dim=1)
SAMPLES = CLUSTERS.repeat(30, 1) + 0.02 * random((600, 30), seed=2)


def batches():
    return training.Batches(SAMPLES, batch_size=60)


def layers(rule):
    torch.manual_seed(1)
    model = nn.Sequential(HebbianLinear(30, 20, rule=rule))
    if isinstance(rule, hk.KrotovHopfield):
        nn.init.normal_(model[0].weight).abs_()
    return model


def trained(model, epochs=8, revive=True, handlers=(), **options):
    handlers = [*handlers, training.ReviveDead(model, steps=10, share=0.1)] if revive else handlers
    return training.train(model, batches(), lr=0.1, epochs=epochs, decay="constant", handlers=handlers, **options)


RULES = [hk.WTA(), hk.WTA(similarity="dot"), hk.WTA(patches="centred"), hk.WTA(k=2), hk.KrotovHopfield()]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_neuron_stays_dead(rule):
    plain, revived = layers(rule), layers(rule)
    trained(plain, revive=False)
    trained(revived)
    assert (wins(plain[0], SAMPLES) == 0).any() and (wins(revived[0], SAMPLES) > 0).all()


def test_filters_are_revived():
    images = random((40, 2, 8, 8)).abs()
    models = [nn.Sequential(HebbianConv2d(2, 12, 3, rule=hk.WTA())) for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        nn.init.uniform_(model[0].weight)
        model[0].weight[6:] *= -1  # the images are positive
        data = training.Batches(images, batch_size=10)
        handlers = [training.ReviveDead(model, steps=4)] if model is models[1] else []
        training.train(model, data, lr=0.05, epochs=5, decay="constant", handlers=handlers)
    without, revived = ((wins(model[0], images) > 0).tolist() for model in models)
    assert without == [True] * 6 + [False] * 6 and revived == [True] * 12


@pytest.mark.parametrize("stop", [7, 10, 23])
def test_a_resumed_training_revives_the_same_neurons(tmp_path, stop):
    """Between restarts, at one, and in another epoch: the counts are in the checkpoint."""

    def interrupt(engine):
        if engine.state.iteration == stop + 1:
            raise KeyboardInterrupt

    whole, resumed = layers(hk.WTA()), layers(hk.WTA())
    trained(whole, 4)
    with pytest.raises(KeyboardInterrupt):
        stopping = [(Events.ITERATION_STARTED, interrupt)]
        trained(layers(hk.WTA()), 4, handlers=stopping, folder=tmp_path, save_every=1)
    trained(resumed, 4, folder=tmp_path, resume=True)
    assert torch.equal(resumed[0].weight, whole[0].weight)
    assert not resumed[0]._forward_pre_hooks
    without = layers(hk.WTA())
    trained(without, 4, revive=False)
    assert not torch.equal(without[0].weight, whole[0].weight)
    with pytest.raises(ValueError, match="must be of such a training, got one without wins"):
        trained(without, 4, revive=False, folder=tmp_path / "plain")
        trained(without, 4, folder=tmp_path / "plain", resume=True)


def test_frozen_neurons_and_layers_that_do_not_learn_stay():
    model = layers(hk.WTA())
    model[0].frozen[:] = True
    model[0].frozen[3] = False
    model.append(HebbianLinear(20, 5, rule=hk.WTA()))
    before = [layer.weight.clone() for layer in model]
    handlers = [training.ReviveDead(model, steps=1, share=1.0)]
    training.train(model, batches(), lr={"0": 0.1}, epochs=1, handlers=handlers)
    assert (model[0].weight != before[0]).any(1).nonzero().flatten().tolist() == [3]
    assert torch.equal(model[1].weight, before[1])


def test_a_blank_patch_counts_for_nobody():
    layer = HebbianLinear(30, 4, rule=hk.WTA())
    x = torch.cat([torch.zeros(5, 30), random((3, 30))])
    assert wins(layer, x).sum() == 3 and torch.equal(wins(layer, x), wins(layer, x[5:]))


def compiled():
    return torch.compile(layers(hk.WTA()), backend="eager")


REFUSED = [
    (lambda: training.ReviveDead(layers(hk.WTA()), steps=0), "steps must be a whole number of at least 1, got 0"),
    (lambda: training.ReviveDead(layers(hk.WTA()), share=2), "share must be from 0 to 1, got 2"),
    (
        lambda: training.ReviveDead(layers(hk.Oja())),
        "model must hold a layer of rule WTA or KrotovHopfield, got none",
    ),
    (
        lambda: training.ReviveDead(compiled()),
        "model must not be compiled, as it then calls no hooks, got one that is",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[case[1] for case in REFUSED])
def test_settings_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == f"hebbkern.ReviveDead: {message}"
