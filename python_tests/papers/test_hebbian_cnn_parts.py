"""Parts of examples.papers.hebbian_cnn: network, trainings, VAE and cache against the paper and its formulas."""

# ruff: noqa: E402 (the modules import packages that may be missing)

import os

import pytest
import torch
from torch import nn

for package in ("ignite", "scipy", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed")

import hebbkern as hk
from examples.papers.hebbian_cnn import training
from examples.papers.hebbian_cnn.cache import Cache
from examples.papers.hebbian_cnn.network import PAPER, Shape, build, outputs, set_statistics
from examples.papers.hebbian_cnn.training import SHC, Hebbian, Plan, Samples, accuracy, fit, fit_centroids, learn
from examples.papers.hebbian_cnn.vae import VAE

SMALL = (Shape(6, 5, 2), Shape(7, 3), Shape(9))


def small(pattern="HHH", rule=None, seed=0):
    torch.manual_seed(seed)
    return build(pattern, SMALL, (3, 14, 14), rule or hk.Sanger())


def images(count=40, seed=1):
    return torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(seed))


def test_stages_have_the_papers_shapes():
    stages = build("HHHHH", PAPER, (3, 32, 32), hk.Sanger())
    assert [tuple(stage.outputs) for stage in stages] == [
        (96, 14, 14),
        (128, 12, 12),
        (192, 5, 5),
        (256, 3, 3),
        (4096,),
    ]
    assert [tuple(stage.layer.weight.shape) for stage in stages] == [
        (96, 3, 5, 5),
        (128, 96, 3, 3),
        (192, 128, 3, 3),
        (256, 192, 3, 3),
        (4096, 2304),
    ]
    bound = [stage.layer.weight[0].numel() ** -0.5 for stage in stages]
    for stage, limit in zip(stages, bound, strict=True):
        largest = stage.layer.weight.abs().max().item()
        assert 0.99 * limit < largest <= limit * 1.0001


def test_letters_choose_what_learns():
    stages = small("BHB")
    assert [isinstance(stage.layer, hk.nn.HebbianConv2d | hk.nn.HebbianLinear) for stage in stages] == [
        False,
        True,
        False,
    ]
    assert stages[0].layer.bias is not None and stages[1].layer.bias is None
    assert stages[0].layer.weight.requires_grad and not stages[1].layer.weight.requires_grad


def test_the_length_of_a_weight_does_not_matter():
    """So that HWTA's projection on w/‖w‖ needs no layer of its own."""
    stages, x = small(), images()
    stages.train()
    before = stages[0](x)
    stages[0].layer.weight.mul_(torch.linspace(0.5, 3, 6)[:, None, None, None])
    torch.testing.assert_close(stages[0](x), before, atol=2e-3, rtol=2e-3)


def test_outputs_are_those_of_the_stages_in_evaluation_mode():
    stages, x = small(), images(230)
    set_statistics(stages, x)
    features = outputs(stages, x)
    assert features.dtype == torch.bfloat16 and features.shape == (230, 9)
    stages.eval()
    torch.testing.assert_close(features.float(), stages(x), atol=0.05, rtol=0.05)
    assert torch.equal(features[100:110], outputs(stages, x[100:110])) or torch.allclose(
        features[100:110].float(), outputs(stages, x[100:110]).float(), atol=0.05
    )


def test_statistics_weigh_all_batches_alike():
    stages, x = small("H"), images(40)
    set_statistics(stages, x, batch_size=10)
    responses = nn.functional.max_pool2d(nn.functional.relu(stages[0].layer(x)), 2)
    torch.testing.assert_close(stages[0].norm.running_mean, responses.mean((0, 2, 3)), atol=5e-3, rtol=5e-3)
    assert stages[0].norm.momentum == 0.1


def test_no_epoch_leaves_weights_as_drawn_and_learning_repeats():
    x = images()
    untouched, twice = small(), [small(), small()]
    drawn = [stage.layer.weight.clone() for stage in untouched]
    learn(untouched[0], x, Hebbian(hk.Sanger(), epochs=0), seed=0)
    assert torch.equal(untouched[0].layer.weight, drawn[0])
    for stages in twice:
        learn(stages[0], x, Hebbian(hk.Sanger(), lr=(0.01,), epochs=2, batch=8), seed=0)
    assert torch.equal(twice[0][0].layer.weight, twice[1][0].layer.weight)
    assert not torch.equal(twice[0][0].layer.weight, drawn[0])


def test_each_stage_has_its_rate():
    x, pair = images(), [small()[0], small()[0]]
    learn(pair[0], x, Hebbian(hk.Sanger(), lr=(0.5, 0.01)), at=1, seed=0)
    learn(pair[1], x, Hebbian(hk.Sanger(), lr=(0.01,)), seed=0)
    assert torch.equal(pair[0].layer.weight, pair[1].layer.weight)


def test_the_last_layer_has_a_rate_of_its_own():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    samples = Samples(torch.randn(8, 3), torch.arange(8) % 2)
    fit(model, samples, Plan(rate=0.1, last=0.0, epochs=1, batch=8, decay=0.0), seed=0, validate=lambda: 0.0)
    moved = [not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, False]


def test_fit_ends_as_it_was_after_its_best_epoch():
    model, scores, states = nn.Linear(4, 2), iter([10.0, 30.0, 20.0]), []

    def validate():
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    x = torch.randn(64, 4)
    best = fit(model, Samples(x, (x[:, 0] > 0).long()), Plan(epochs=3, batch=16), seed=0, validate=validate)
    assert best == (30.0, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[1][name]) and not torch.equal(value, states[2][name])


def test_the_rate_is_a_triangle():
    shares = [training._share(step, 100, 0.2) for step in range(100)]
    assert shares[0] == pytest.approx(1 / 20) and shares[19] == pytest.approx(1)
    assert shares[20] == pytest.approx(1) and shares[60] == pytest.approx(0.5) and shares[99] == pytest.approx(1 / 80)


def test_mirrored_images_are_taken_in_half_of_the_cases():
    count = 1000
    samples = Samples(torch.zeros(count, 1), torch.zeros(count).long(), torch.ones(count, 1))
    drawn = training._batch(samples, torch.arange(count), torch.Generator().manual_seed(0))
    assert 0.4 < drawn.mean() < 0.6


def test_shc_finds_the_centroids():
    """One batch of all samples at rate 1: equation 8 averaged over the samples of a class."""
    y = torch.arange(60) % 3
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(5)[y]
    model, _ = fit_centroids(x, y, 3, SHC(lr=1.0, batch=60), seed=0)
    for label in range(3):
        torch.testing.assert_close(model.layer.weight[label], x[y == label].mean(0), atol=1e-5, rtol=1e-5)
    assert accuracy(model, x, y) > 90


def test_accuracy_counts_the_highest_answers():
    answers = torch.eye(6).flip(1) + torch.arange(6) * 1e-3
    labels = torch.arange(6)
    assert accuracy(nn.Identity(), answers, labels) == pytest.approx(0)
    assert accuracy(nn.Identity(), answers, labels, top=6) == 100
    assert accuracy(nn.Identity(), answers, labels.flip(0)) == 100


def test_vae_answers_images_and_its_loss_is_the_bound():
    model, x = VAE(small("BBB"), latent=4).eval(), images(5)
    decoded, mean, spread = model(x)
    assert decoded.shape == x.shape and mean.shape == spread.shape == (5, 4)
    distance = ((decoded - x) ** 2).sum() / 2 / 5
    divergence = -0.5 * (1 + spread - mean**2 - spread.exp()).sum() / 5  # Kingma and Welling 2014, appendix B
    assert model.loss(x).item() == pytest.approx((distance + 0.5 * divergence).item(), rel=1e-5)


def test_vae_mirrors_the_papers_network():
    model = VAE(build("BBBBB", PAPER, (3, 32, 32), None)).eval()
    assert model(torch.zeros(2, 3, 32, 32))[0].shape == (2, 3, 32, 32)


def test_cache_computes_once_and_drops_what_was_not_used_for_longest(tmp_path):
    cache, calls = Cache(tmp_path, gigabytes=250e-9), []

    def fill(value):
        def write(out):
            calls.append(value)
            out.fill_(value)

        return write

    first = cache.features("a", (10, 5), fill(1))
    assert first.dtype == torch.bfloat16 and (first == 1).all()
    cache.features("b", (10, 5), fill(2))
    assert (cache.features("a", (10, 5), fill(9)) == 1).all() and calls == [1, 2]
    for path in tmp_path.glob("*.bf16"):
        os.utime(path, (1, 1) if (torch.from_file(str(path), size=1, dtype=torch.bfloat16) == 2).all() else None)
    cache.features("c", (10, 5), fill(3))  # 100 bytes each: room for two
    assert (first == 1).all()
    cache.features("a", (10, 5), fill(9))
    assert calls == [1, 2, 3]
    cache.features("b", (10, 5), fill(4))
    assert calls == [1, 2, 3, 4]


def test_cache_keeps_nothing_of_what_was_interrupted(tmp_path):
    cache = Cache(tmp_path, gigabytes=1)
    with pytest.raises(KeyboardInterrupt):
        cache.features("a", (2, 2), lambda out: (_ for _ in ()).throw(KeyboardInterrupt))
    assert (cache.features("a", (2, 2), lambda out: out.fill_(5)) == 5).all()
    assert cache.state("s", lambda: {"x": torch.ones(2)})["x"].sum() == 2
    assert cache.state("s", dict)["x"].sum() == 2
