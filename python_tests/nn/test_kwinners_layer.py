"""KWinners as a torch layer: winners, gradients, tracing, and boosting of neurons that never win."""

import math

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import KWinners


def test_kwinners_keeps_the_highest():
    y = torch.tensor([[3.0, -1, 2, 3], [0, 5, 5, 5]])
    assert KWinners(2)(y).tolist() == [[3, 0, 0, 3], [0, 5, 5, 0]]
    maps = random((2, 7, 3, 4))
    assert (KWinners(3)(maps) != 0).sum(1).eq(3).all()
    assert torch.equal(KWinners(3, dim=-1)(maps), hk.ops.kwinners(maps, 3, -1))
    assert repr(KWinners(3)) == "KWinners(k=3, dim=1)"
    with pytest.raises(ValueError, match="k must be between 1 and 4 entries along dim 1, got 5"):
        KWinners(5)(y)


def test_kwinners_passes_gradients_to_the_winners():
    y = torch.tensor([[3.0, -1, 2, 4]], requires_grad=True)
    out = KWinners(2)(y)
    assert torch.equal(out.detach(), KWinners(2)(y.detach()))
    (out * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert y.grad.tolist() == [[1, 0, 0, 4]]


def test_kwinners_is_traced_by_fx():
    """A traced model computes the same, with gradients, and `create_feature_extractor` reads its winners."""
    model = nn.Sequential(hk.nn.HebbianLinear(12, 5, rule=hk.WTA()), KWinners(2), nn.Linear(5, 2))
    traced, x = torch.fx.symbolic_trace(model), random((4, 12)).requires_grad_()
    assert torch.equal(traced(x), model(x)) and torch.equal(traced(x.detach()), model(x.detach()))
    gradients = [torch.autograd.grad(each(x).sum(), x)[0] for each in (traced, model)]
    assert torch.equal(*gradients) and gradients[0].any()
    extraction = pytest.importorskip("torchvision.models.feature_extraction", reason="torchvision is not installed")
    winners = extraction.create_feature_extractor(model.eval(), {"1": "winners"})(x)["winners"]
    assert torch.equal(winners, model[:2](x)) and (winners != 0).sum(1).tolist() == [2] * 4


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_share_and_another_number_in_evaluation(evaluate):
    y = random((4, 10))
    for layer, counts in (
        (KWinners(percent_on=0.3), (3, 3)),
        (KWinners(percent_on=0.01), (1, 1)),
        (KWinners(percent_on=0.3, eval_k=5), (3, 5)),
        (KWinners(2, eval_k=3), (2, 3)),
    ):
        layer.train(not evaluate)
        assert torch.equal(layer(y), KWinners(counts[evaluate])(y))
    assert repr(KWinners(percent_on=0.3, eval_k=5)) == "KWinners(dim=1, percent_on=0.3, eval_k=5)"


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 2)])
def test_boosting_by_its_equations(shape):
    """Ahmad and Scheinkman 2019: y_i exp(β (a − d_i)) competes, y_i is kept."""
    layer, duty = KWinners(2, boost_strength=1.5, neurons=5, duty_cycle_period=4), torch.full((5,), 2 / 5)
    axes = [1, -1] + [1] * (len(shape) - 2)
    for seed in range(5):
        y = random(shape, seed=seed).abs()
        boosted = y * torch.exp(1.5 * (2 / 5 - duty)).view(axes)
        on = boosted >= boosted.topk(2, 1).values.amin(1, keepdim=True)
        assert torch.equal(layer(y), torch.where(on, y, 0))
        duty += (on.movedim(1, 0).flatten(1).float().mean(1) - duty) / 4
        torch.testing.assert_close(layer.duty_cycle, duty)
    layer.eval()
    before = layer.duty_cycle.clone()
    boosted = y * torch.exp(1.5 * (2 / 5 - duty)).view(axes)
    assert torch.equal(layer(y), torch.where(boosted >= boosted.topk(2, 1).values.amin(1, keepdim=True), y, 0))
    assert torch.equal(layer.duty_cycle, before)
    layer.reset_parameters()
    torch.testing.assert_close(layer.duty_cycle, torch.full((5,), 2 / 5))


def test_boosting_lets_every_neuron_win():
    """Half of the neurons respond less than the others to everything: without boosting they never win."""
    gains = torch.cat([torch.ones(10), torch.full((10,), 0.5)])
    won = {}
    for strength in (0.0, 5.0):
        neurons = 20 if strength else None
        layer, on = KWinners(4, boost_strength=strength, neurons=neurons, duty_cycle_period=20), torch.zeros(20)
        for seed in range(100):
            on += (layer((random((16, 20), seed=seed).abs().clamp(max=1) + 1) * gains) != 0).sum(0)
        won[strength] = on
    assert (won[0.0][10:] == 0).all() and (won[5.0] > 0).all()


def test_boosting_is_resumed_compiled_and_traced():
    """The duty cycles are in the state dict; a graph moves them too."""
    torch.compiler.reset()
    layer, other = (KWinners(2, boost_strength=2.0, neurons=5, duty_cycle_period=3) for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        y = random((6, 5), seed=seed).abs().requires_grad_()
        torch.testing.assert_close(compiled(y), other(y))
        torch.testing.assert_close(layer.duty_cycle, other.duty_cycle)
    again = KWinners(2, boost_strength=2.0, neurons=5)
    again.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {"duty_cycle"} and torch.equal(again.eval()(y), layer.eval()(y))
    assert torch.equal(torch.fx.symbolic_trace(layer)(y), layer(y)) and not KWinners(2).state_dict()
    (gradient,) = torch.autograd.grad(layer(y).sum(), y)
    assert torch.equal(gradient, (layer(y) != 0).float())
    with pytest.raises(ValueError, match=r"hebbkern.KWinners: y must have the 5 neurons along dim 1, got 4"):
        other(y[:, :4])


REFUSED = [
    (lambda: KWinners(0), "k must be a whole number of at least 1, got 0"),
    (lambda: KWinners(0.5), "k must be a whole number of at least 1, got 0.5"),
    (KWinners, "k must be a whole number of at least 1, got None"),
    (lambda: KWinners(2, percent_on=0.5), "k must be None where percent_on is given, got 2"),
    (lambda: KWinners(percent_on=1.5), "percent_on must be above 0 and at most 1, got 1.5"),
    (lambda: KWinners(2, eval_k=0), "eval_k must be a whole number of at least 1, got 0"),
    (lambda: KWinners(2, boost_strength=math.inf), "boost_strength must be finite and at least 0, got inf"),
    (lambda: KWinners(2, boost_strength=1.0), "neurons must be a whole number of at least 1, got None"),
    (lambda: KWinners(2, duty_cycle_period=0), "duty_cycle_period must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[case[1] for case in REFUSED])
def test_settings_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == f"hebbkern.KWinners: {message}"
