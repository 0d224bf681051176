"""hk.nn.init_from_samples_: neurons that start on patches of the data, spread over their directions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear
from hebbkern.nn.patches import drawn_patches

CLUSTERS = 3 * F.normalize(random((20, 30)), dim=1)


def clustered(n, seed):
    """[n, 30] samples near 20 directions."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(20, (n,), generator=generator)
    return CLUSTERS[of] + 0.02 * torch.randn(n, 30, generator=generator)


def dead(layer):
    """How many neurons win none of 1000 samples."""
    x = clustered(1000, seed=99)
    return int((hk.evaluation.measures.wins(layer, x) == 0).sum())


@pytest.mark.parametrize("rule", [hk.WTA(), hk.WTA(similarity="dot"), hk.WTA(patches="centred"), hk.WTA(k=2)], ids=str)
def test_no_neuron_is_dead_that_began_on_a_sample(rule):
    """As many neurons as clusters: those that begin at random leave some clusters to one and some neurons to none."""
    left = {}
    for start in ("random", "samples"):
        torch.manual_seed(1)
        layer = HebbianLinear(30, 20, rule=rule)
        if start == "samples":
            assert hk.nn.init_from_samples_(layer, clustered(500, seed=7)) is layer
        for seed in range(60):
            layer.learn(clustered(64, seed), lr=0.1)
        left[start] = dead(layer)
    assert left["random"] > 0 and left["samples"] == 0


def test_neurons_are_samples_of_one_length():
    x, layer = clustered(200, seed=3), HebbianLinear(30, 20, rule=hk.WTA())
    hk.nn.init_from_samples_(layer, x, seed=5)
    cosines = F.normalize(layer.weight, dim=1) @ F.normalize(x, dim=1).T
    torch.testing.assert_close(cosines.amax(1), torch.ones(20))
    torch.testing.assert_close(layer.weight.norm(dim=1), x.norm(dim=1).mean().expand(20))
    again, other = (HebbianLinear(30, 20, rule=hk.WTA()) for _ in range(2))
    hk.nn.init_from_samples_(again, x, seed=5)
    hk.nn.init_from_samples_(other, x, seed=6)
    assert torch.equal(again.weight, layer.weight) and not torch.equal(other.weight, layer.weight)


def test_krotov_and_hopfields_neurons_have_length_one_in_their_norm():
    layer = HebbianLinear(30, 20, rule=hk.KrotovHopfield(p=3.0))
    hk.nn.init_from_samples_(layer, clustered(200, seed=3))
    torch.testing.assert_close(torch.linalg.vector_norm(layer.weight, 3, dim=1), torch.ones(20))


def test_frozen_neurons_stay_and_count_as_chosen():
    layer = HebbianLinear(30, 20, rule=hk.WTA())
    layer.weight[:19] = CLUSTERS[:19]
    layer.frozen[:19] = True
    before = layer.weight.clone()
    hk.nn.init_from_samples_(layer, clustered(500, seed=1))
    assert torch.equal(layer.weight[:19], before[:19])
    assert F.cosine_similarity(layer.weight[19], CLUSTERS[19], dim=0) > 0.99  # of the one cluster that was left


@pytest.mark.parametrize("patches", ["raw", "centred", "standardised"])
def test_filters_are_patches_of_images(patches):
    """None is blank, although most patches are: only one corner of each image is not constant."""
    images = torch.full((6, 3, 12, 12), 0.5)
    images[:, :, :4, :4] = random((6, 3, 4, 4)).abs()
    if patches == "raw":
        images[images == 0.5] = 0
    layer = HebbianConv2d(3, 8, 3, stride=2, rule=hk.WTA(patches=patches))
    hk.nn.init_from_samples_(layer, images)
    all_patches = F.unfold(images, 3, stride=2).transpose(1, 2).reshape(-1, 27)
    if patches != "raw":
        all_patches = all_patches - all_patches.mean(1, keepdim=True)
        torch.testing.assert_close(layer.weight.flatten(1).mean(1), torch.zeros(8), atol=1e-6, rtol=0)
    cosines = F.normalize(layer.weight.flatten(1), dim=1) @ F.normalize(all_patches, dim=1).T
    torch.testing.assert_close(cosines.amax(1), torch.ones(8))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2},
        {"padding": "same"},
        {"padding": (1, 0), "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")
def test_the_patches_drawn_are_those_of_the_layer(options):
    """All of them, in some order: their products with the weight are the output of the layer."""
    layer, x = nn.Conv2d(4, 6, (3, 2), bias=False, **options).double(), random((5, 4, 9, 8), torch.float64)
    patches = drawn_patches(layer, x, 10**6, torch.Generator())
    y = torch.cat([p @ w.T for p, w in zip(patches, layer.weight.flatten(1).chunk(layer.groups), strict=True)], 1)
    want = layer(x).movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(y[y[:, 0].argsort()], want[want[:, 0].argsort()])
    assert drawn_patches(layer, x, 7, torch.Generator()).shape == (layer.groups, 7, 24 // layer.groups)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Linear(30, 20), clustered(100, seed=0)),
        (lambda: nn.Conv1d(4, 6, 3, groups=2), random((5, 4, 9))),
        (lambda: nn.Conv3d(2, 6, 2), random((3, 2, 4, 4, 4))),
        (lambda: nn.Linear(30, 20, dtype=torch.bfloat16), clustered(100, seed=0)),
    ],
)
def test_plain_layers_start_on_samples_too(make, x):
    layer = make()
    before = layer.weight.clone()
    hk.nn.init_from_samples_(layer, x)
    assert (layer.weight != before).flatten(1).any(1).all() and layer.weight.isfinite().all()
    assert len(torch.unique(layer.weight.float(), dim=0)) == len(layer.weight)


REFUSED = [
    (lambda: nn.ReLU(), torch.ones(2, 3), "layer must be a linear layer or a convolution, got ReLU"),
    (lambda: nn.Linear(3, 2), [1.0], "x must be a tensor, got list"),
    (lambda: nn.Linear(3, 2), torch.ones(4, 5), "x must have the layer's 3 inputs or channels, got shape [4, 5]"),
    (
        lambda: nn.Conv2d(3, 2, 2),
        torch.ones(2, 4, 4),
        "x must have the layer's 3 inputs or channels, got shape [2, 4, 4]",
    ),
    (lambda: nn.Linear(3, 2), torch.ones(4, 3).long(), "x must be float32, float64, bfloat16 or float16, got int64"),
    (lambda: nn.Linear(3, 2), torch.full((4, 3), torch.nan), "x must be finite, got a NaN or an infinity"),
    (lambda: nn.Linear(3, 2), torch.zeros(4, 3), "x must have a patch that is not blank for each group, got none"),
]


@pytest.mark.parametrize(("make", "x", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_what_does_not_fit_is_refused(make, x, message):
    layer = make()
    before = [parameter.clone() for parameter in layer.parameters()]
    with pytest.raises(ValueError) as error:
        hk.nn.init_from_samples_(layer, x)
    assert str(error.value).startswith(f"hebbkern.nn.init_from_samples_: {message}")
    assert all(map(torch.equal, layer.parameters(), before))
