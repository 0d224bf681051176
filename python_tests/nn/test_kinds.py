"""Every kind of Hebbian layer, Linear to Conv3d, grouped or not: steps against hebbkern.reference, and all that takes
layers."""

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern import reference
from hebbkern.evaluation.measures import answers, wins
from hebbkern.nn import HebbianConv1d, HebbianConv2d, HebbianConv3d, HebbianLinear

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
KINDS = {
    "linear": (HebbianLinear, (12, 8), {}, (7, 12)),
    "linear of sequences": (HebbianLinear, (12, 8), {}, (2, 4, 12)),
    "conv1d": (HebbianConv1d, (3, 8, 4), {"stride": 2, "padding": 3, "dilation": 2}, (3, 3, 12)),
    "conv1d of groups": (HebbianConv1d, (4, 8, 3), {"padding": "same", "groups": 2}, (3, 4, 9)),
    "conv1d, circular": (HebbianConv1d, (2, 8, 3), {"padding": 1, "padding_mode": "circular"}, (2, 2, 7)),
    "conv2d": (HebbianConv2d, (3, 8, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}, (2, 3, 7, 6)),
    "conv2d of groups": (HebbianConv2d, (4, 8, 3), {"padding": 1, "dilation": (1, 2), "groups": 2}, (2, 4, 6, 7)),
    "depthwise": (HebbianConv2d, (3, 12, 3), {"padding": "same", "groups": 3}, (2, 3, 6, 5)),
    "conv2d, reflected": (
        HebbianConv2d,
        (4, 8, 3),
        {"padding": 2, "padding_mode": "reflect", "groups": 2},
        (2, 4, 6, 5),
    ),
    "conv3d": (
        HebbianConv3d,
        (3, 8, (2, 3, 2)),
        {"stride": (2, 1, 2), "padding": (1, 1, 0), "dilation": (2, 1, 1)},
        (2, 3, 5, 4, 5),
    ),
    "conv3d of groups": (HebbianConv3d, (4, 8, 2), {"stride": (1, 2, 1), "groups": 2}, (2, 4, 4, 4, 3)),
    "conv3d, same": (HebbianConv3d, (2, 8, (3, 1, 2)), {"padding": "same"}, (2, 2, 4, 3, 3)),
    "conv3d, replicated": (HebbianConv3d, (2, 8, 3), {"padding": 1, "padding_mode": "replicate"}, (1, 2, 3, 4, 3)),
}
PATCHES = {"patches": "centred"}
RULES = [
    (hk.KrotovHopfield(**PATCHES), reference.krotov_hopfield, PATCHES),
    (hk.WTA(k=2, **PATCHES), reference.wta, {"k": 2, **PATCHES}),
    (hk.Sanger(), reference.sanger, {}),
    (hk.Oja(patches="standardised"), reference.oja, {"patches": "standardised"}),
    (hk.SoftWTA(), reference.soft_wta, {}),
    (hk.Supervised(), reference.supervised, {}),
]
kinds = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding:UserWarning")  # torch says that it copies the input


def layer_of(kind, rule=None, **options):
    make, arguments, settings, _ = KINDS[kind]
    torch.manual_seed(0)
    return make(*arguments, rule=rule or hk.WTA(), **settings, **options)


def input_of(kind, dtype=torch.float32):
    return random(KINDS[kind][-1], dtype, seed=2, offset=0.3)


def labels_of(x):
    return (torch.arange(len(x)) * 4 + 3) % 9 - 1  # 2, 6, ...; -1 for the seventh, which has none


def batch_of_images(layer, x):
    """x [B, C, axes...] padded as the layer does, the positions of its patches, and their offsets in x."""
    x, axes = x.cpu().double().numpy(), range(x.dim() - 2)
    total = [layer.dilation[i] * (layer.kernel_size[i] - 1) for i in axes]
    sides = [(t // 2, t - t // 2) for t in total] if layer.padding == "same" else [(p, p) for p in layer.padding]
    x = np.pad(x, [(0, 0), (0, 0), *sides], mode=MODES[layer.padding_mode])
    starts = [range(0, x.shape[2 + i] - total[i], layer.stride[i]) for i in axes]
    taps = [range(0, t + 1, layer.dilation[i]) for i, t in enumerate(total)]
    return x, list(itertools.product(*starts)), list(itertools.product(*taps))


def unfolded(layer, x):
    """[groups, P, N] float64: every patch of x, entry by entry."""
    if isinstance(layer, nn.Linear):
        return x.cpu().double().numpy().reshape(1, -1, x.shape[-1])
    x, starts, taps = batch_of_images(layer, x)
    places = [[tuple(a + b for a, b in zip(start, tap, strict=True)) for tap in taps] for start in starts]
    rows = [[image[:, *zip(*place, strict=True)] for place in places] for image in x]  # [B][positions][C, taps]
    rows = np.array(rows).reshape(len(x) * len(places), layer.groups, -1)
    return rows.swapaxes(0, 1)


def expected(layer, x, labels, lr, function, settings):
    """The weight after a step: one layer of hebbkern.reference for each group, side by side, all in float64."""
    rows, weight = unfolded(layer, x), layer.weight.detach().cpu().double().numpy().reshape(len(layer.weight), -1)
    frozen, groups = layer.frozen.cpu().numpy(), len(rows)
    own = [part.reshape(-1, weight.shape[1]) for part in np.split(weight, groups)]
    masks, each = np.split(frozen, groups), len(weight) // groups
    if function is reference.krotov_hopfield:  # divides by the largest entry of the whole layer
        sums = []
        for patches, part, mask in zip(rows, own, masks, strict=True):
            winners, responses = reference.compete(patches, part, 2, 2.0, **settings)
            sums.append(reference.accumulate(patches, winners, [1.0, -0.4], each, (), responses, mask, **settings))
        total, decay, _ = (np.concatenate(parts) for parts in zip(*sums, strict=True))
        return reference.apply(weight, total, decay, lr=lr, normalise="global_max", frozen=frozen)
    moved = []
    for group, (patches, part, mask) in enumerate(zip(rows, own, masks, strict=True)):
        options = dict(settings)
        if function is reference.supervised:
            named = np.repeat(labels.cpu().numpy(), len(patches) // len(labels)) - group * each
            options["labels"] = np.where((named < 0) | (named >= each), -1, named)
        moved.append(function(part, patches, lr=lr, frozen=mask, **options))
    return np.concatenate(moved)


@pytest.mark.slow(6, on="triton")
@pytest.mark.parametrize(("rule", "function", "settings"), RULES, ids=[str(rule) for rule, *_ in RULES])
@kinds
def test_a_step_is_the_reference_on_unfolded_patches(backend, kind, rule, function, settings):
    layer, x = layer_of(kind, rule, dtype=torch.float64), input_of(kind, torch.float64)
    layer, x = layer.to(backend.device), x.to(backend.device)
    layer.frozen[[1, 6]] = True
    labels = labels_of(x).to(x.device)
    want = expected(layer, x, labels, 0.1, function, settings)
    before = layer.weight.clone()
    layer.learn(x, lr=0.1, labels=labels)
    got = layer.weight.detach().cpu().numpy().reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
    assert torch.equal(layer.weight[layer.frozen], before[layer.frozen]) and not torch.equal(layer.weight, before)


@kinds
def test_a_layer_is_torchs_and_learns_in_its_forward_pass(kind):
    layer, x = layer_of(kind, bias=True), input_of(kind)
    plain, twin = layer.plain.__new__(layer.plain), copy.deepcopy(layer)
    plain.__dict__.update(vars(copy.deepcopy(layer)))
    assert isinstance(layer, layer.plain) and torch.equal(layer(x), plain(x))
    with hk.learning(layer, lr=0.1, strict=True):
        y = layer(x)
        with hk.nn.no_learning():
            layer(x)
    twin.learn(x, lr=0.1)
    assert torch.equal(layer.weight, twin.weight) and torch.equal(y, twin(x)) and not torch.equal(y, plain(x))


@kinds
def test_a_sample_without_a_batch_axis(kind):
    if kind == "linear of sequences":
        pytest.skip("has no such input")
    layer, twin, x = layer_of(kind, hk.Sanger()), layer_of(kind, hk.Sanger()), input_of(kind)[:1]
    layer.learn(x[0], lr=0.1)
    twin.learn(x, lr=0.1)
    assert torch.equal(layer.weight, twin.weight) and not torch.equal(layer.weight, layer_of(kind).weight)


@kinds
def test_an_empty_batch_teaches_nothing(kind):
    layer = layer_of(kind, hk.Oja())
    layer.learn(input_of(kind)[:0], lr=0.1)
    assert torch.equal(layer.weight, layer_of(kind).weight)


@kinds
def test_gradients_are_the_step(kind):
    layer, twin = (layer_of(kind, dtype=torch.float64) for _ in range(2))
    x = input_of(kind, torch.float64)
    before = layer.weight.clone()
    layer.learn(x, into="grad")
    twin.learn(x, lr=1.0)
    assert torch.equal(layer.weight, before) and layer.weight.grad.shape == before.shape
    torch.testing.assert_close(before - layer.weight.grad, twin.weight.detach())


@kinds
def test_updates_are_summed_over_a_group(kind, monkeypatch):
    """Of two processes that have the same batch: the step of a rule that averages is that of one."""
    layer, twin, x = layer_of(kind, hk.Sanger()), layer_of(kind, hk.Sanger()), input_of(kind)
    monkeypatch.setattr(hk.Update, "all_reduce", lambda update, group: update + update)
    layer.learn(x, lr=0.1, group=object())
    twin.learn(x, lr=0.1)
    torch.testing.assert_close(layer.weight, twin.weight)
    assert not torch.equal(layer.weight, layer_of(kind).weight)


@kinds
def test_low_precision_is_rounded_stochastically(kind):
    layer, again = (layer_of(kind, hk.Hebb(), dtype=torch.bfloat16) for _ in range(2))
    exact, x = layer.weight.detach().double(), input_of(kind, torch.bfloat16)
    for each in (layer, again):
        each.learn(x, lr=1e-3, generator=torch.Generator().manual_seed(4))
    wide = layer_of(kind, hk.Hebb(), dtype=torch.float64)
    wide.weight.copy_(exact)
    wide.learn(x.double(), lr=1e-3)
    far = (layer.weight.double() - wide.weight).abs()
    assert torch.equal(layer.weight, again.weight) and not torch.equal(layer.weight.double(), exact)
    assert (far <= wide.weight.abs() * 2.0**-7 + 1e-6).all()


@kinds
def test_steps_below_the_precision_are_warned_of(kind):
    layer = layer_of(kind, hk.Hebb(), dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=f"{type(layer).__name__}: more than half of the weights"):
        layer.learn(input_of(kind, torch.bfloat16), lr=1e-7)


@kinds
def test_products_of_another_dtype(kind):
    layer, twin, x = layer_of(kind, hk.Sanger()), layer_of(kind, hk.Sanger()), input_of(kind)
    layer.learn(x, lr=0.1, dtype=torch.bfloat16)
    twin.learn(x, lr=0.1)
    torch.testing.assert_close(layer.weight, twin.weight, rtol=0.05, atol=0.01)
    assert not torch.equal(layer.weight, twin.weight)


@kinds
def test_convert_and_revert(kind):
    want, x = layer_of(kind, bias=True), input_of(kind)
    model = hk.nn.revert(nn.Sequential(copy.deepcopy(want)))
    layer = model[0]
    assert type(layer) is want.plain and layer.weight.requires_grad
    assert hk.nn.convert(model, {type(layer): hk.WTA()}) == {"0": layer}
    assert type(layer) is type(want) and list(model.state_dict()) == ["0.weight", "0.bias", "0.frozen"]
    for each in (layer, want):
        each.learn(x, lr=0.1)
    assert torch.equal(layer.weight, want.weight)
    hk.nn.revert(model)
    assert type(layer) is want.plain and list(model.state_dict()) == ["0.weight", "0.bias"]


@kinds
def test_copies_pickles_and_state_dicts(kind):
    layer = layer_of(kind)
    layer.frozen[2] = True
    layer.learn(input_of(kind), lr=0.1)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = layer_of(kind)
    loaded.load_state_dict(layer.state_dict())
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False), loaded
    for each in copies:
        assert type(each) is type(layer) and each.rule == layer.rule and "rule=WTA(" in repr(each)
        assert torch.equal(each.weight, layer.weight) and each.frozen.tolist() == layer.frozen.tolist()
    plain = {"weight": layer.weight}  # a checkpoint of the plain layer: no neuron is frozen
    layer.load_state_dict(plain)
    assert not layer.frozen.any()


@kinds
def test_neurons_start_on_patches_and_their_wins_are_counted(kind):
    layer, x = layer_of(kind), input_of(kind)
    hk.nn.init_from_samples_(layer, x)
    rows = torch.from_numpy(unfolded(layer, x)).float()
    for patches, weight in zip(rows, layer.weight.flatten(1).chunk(len(rows)), strict=True):
        cosines = nn.functional.normalize(weight) @ nn.functional.normalize(patches).T
        torch.testing.assert_close(cosines.amax(1), torch.ones(len(weight)))
    counts = wins(layer, x)
    assert counts.shape == (len(layer.weight),) and int(counts.sum()) == rows.shape[0] * rows.shape[1]
    assert answers(layer, layer(x)).shape == (rows.shape[1], len(layer.weight))
    layer.rule = hk.Supervised()
    assert int(wins(layer, x).sum()) == rows.shape[0] * rows.shape[1]


def test_wins_of_each_group_are_those_of_the_reference():
    layer, x = layer_of("conv3d of groups", hk.WTA(similarity="dot")), input_of("conv3d of groups")
    want = []
    for patches, weight in zip(unfolded(layer, x), layer.weight.double().flatten(1).chunk(2), strict=True):
        winners, _ = reference.compete(patches, weight.numpy(), 1)
        want += np.bincount(winners[:, 0], minlength=4).tolist()
    assert wins(layer, x).tolist() == want


@kinds
def test_dead_neurons_are_revived(kind):
    """Half of the neurons of each group begin opposite to all data, where no patch can win them."""
    pytest.importorskip("ignite", reason="ignite is not installed")
    x = input_of(kind).abs() + 0.1
    layer = layer_of(kind)
    model = nn.Sequential(layer)
    layer.weight.abs_()
    groups = getattr(layer, "groups", 1)
    for part in layer.weight.chunk(groups):
        part[len(part) // 2 :] *= -1
    assert (wins(layer, x) == 0).sum() >= len(layer.weight) // 2
    handlers = [hk.training.ReviveDead(model, steps=1, share=0.01)]
    before = layer.weight.clone()
    hk.training.train(model, [x], lr=0.01, epochs=2, decay="constant", handlers=handlers)
    assert layer.weight.isfinite().all() and (layer.weight >= 0).all() and not torch.equal(layer.weight, before)


@kinds
def test_probes_and_consolidation_read_the_layer(kind):
    pytest.importorskip("ignite", reason="ignite is not installed")
    from hebbkern.continual.consolidation import EWC

    layer, x = layer_of(kind), input_of(kind)
    width = layer(x)[0].numel()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(width, 3))
    labels = torch.arange(len(x)) % 3
    before = layer.weight.clone()
    method = EWC(model, strength=1.0)
    with hk.learning(model, lr=0.1):
        method.after_task(model, [(x, labels)])
        assert torch.equal(layer.weight, before)  # looking teaches nothing
        model(x)
    assert method.penalty(model).isfinite() and not torch.equal(layer.weight, before)
    want = layer(x)
    with hk.evaluation.features.taps(model, ["0"]) as read:
        assert torch.equal(read(x)["0"], want)


@pytest.mark.slow(4)
@pytest.mark.parametrize("rule", [hk.WTA(), hk.Sanger(), hk.Supervised()], ids=str)
@kinds
def test_compiled_layers_match_eager_ones(kind, rule):
    torch.compiler.reset()
    layer, twin, x = layer_of(kind, rule), layer_of(kind, rule), input_of(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    labels = labels_of(x)
    for lr in (0.1, 0.05):
        with hk.learning(layer, lr=lr, labels=labels):
            y = compiled(x)
        with hk.learning(twin, lr=lr, labels=labels):
            want = twin(x)
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-5, atol=1e-5)
    assert not torch.equal(layer.weight, layer_of(kind).weight)


@pytest.mark.parametrize("into", ["weight", "grad"])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("kind", ["conv3d", "conv3d of groups"])
def test_a_weight_in_channels_last_learns(kind, low, into):
    """The rules see C·kd channels, of which channels_last_3d has no view: what they see is a copy that is put back."""
    dtype = torch.bfloat16 if low else torch.float32
    options = {"into": into, "lr": 0.5, "generator": torch.Generator().manual_seed(1) if low else None}
    layer, twin = (layer_of(kind, hk.Oja(), dtype=dtype) for _ in range(2))
    layer.to(memory_format=torch.channels_last_3d)
    weight, version = layer.weight, layer.weight._version
    assert not weight.is_contiguous()
    layer.learn(input_of(kind, dtype).contiguous(memory_format=torch.channels_last_3d), **options)
    twin.learn(input_of(kind, dtype), **options | {"generator": torch.Generator().manual_seed(1) if low else None})
    assert layer.weight is weight and weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(weight, twin.weight)
    if into == "grad":
        torch.testing.assert_close(weight.grad, twin.weight.grad)
    else:
        assert weight._version > version and not torch.equal(twin.weight, layer_of(kind, dtype=dtype).weight)


@pytest.mark.slow(3)
def test_a_compiled_layer_in_channels_last_learns():
    torch.compiler.reset()
    layer, twin = (layer_of("conv3d", hk.Oja()) for _ in range(2))
    layer.to(memory_format=torch.channels_last_3d)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = input_of("conv3d")
    for each, call in ((layer, compiled), (twin, twin)):
        with hk.learning(each, lr=0.1):
            call(x)
    torch.testing.assert_close(layer.weight, twin.weight)


@pytest.mark.parametrize("mode", ["training", "no_grad", "inference"])
@kinds
def test_layers_learn_in_every_mode_of_autograd(kind, mode):
    layer, twin, x = layer_of(kind), layer_of(kind), input_of(kind)
    context = {"training": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    version = layer.weight._version
    with context(), hk.learning(layer, lr=0.1, strict=True):
        layer(x)
    twin.learn(x, lr=0.1)
    assert torch.equal(layer.weight, twin.weight) and layer.weight._version > version


REFUSED = [
    ("linear", (7, 11), "weight must have x's 11 inputs, got 12"),
    ("conv1d", (3, 4, 12), "x must be [batch, 3 channels, width] or [3 channels, width], got shape [3, 4, 12]"),
    ("conv1d", (3, 3, 12, 2), "x must be [batch, 3 channels, width] or [3 channels, width], got shape"),
    ("conv2d of groups", (4, 6), "x must be [batch, 4 channels, height, width] or [4 channels, height, width], got"),
    ("conv3d", (2, 3, 5, 4), "x must be [batch, 3 channels, depth, height, width] or [3 channels, depth, height, w"),
    ("conv3d of groups", (2, 4, 1, 4, 3), "weight must fit into the padded depth 1, got a kernel that spans 2"),
    ("conv3d of groups", (2, 4, 4, 1, 3), "weight must fit into the padded image 1x3, got a kernel that spans 2x2"),
    ("conv1d of groups", None, "x must be a tensor, got None"),
]


@pytest.mark.parametrize(("kind", "shape", "message"), REFUSED, ids=[f"{row[0]} {row[1]}" for row in REFUSED])
def test_inputs_that_do_not_fit_are_refused(kind, shape, message):
    layer, x = layer_of(kind), None if shape is None else random(shape)
    before = layer.weight.clone()
    with pytest.raises(ValueError) as error:
        layer.learn(x, lr=0.1)
    assert message in str(error.value) and torch.equal(layer.weight, before)


@pytest.mark.parametrize("kind", ["conv1d", "depthwise", "conv3d"])
def test_labels_are_one_a_sample(kind):
    layer, x = layer_of(kind, hk.Supervised()), input_of(kind)
    with pytest.raises(ValueError, match=r"learn: labels must be given for Supervised, got None"):
        layer.learn(x, lr=0.1)
    for labels in (torch.zeros(len(x) + 1, dtype=torch.int64), torch.zeros(len(x)), np.zeros(len(x), dtype=np.int64)):
        with pytest.raises(ValueError, match=rf"labels must be int64 or int32 of shape \[{len(x)}\]"):
            layer.learn(x, lr=0.1, labels=labels)
    assert torch.equal(layer.weight, layer_of(kind).weight)


def test_depth_slices_copy_the_input_once_for_each_tap():
    """And not for the kernel's height and width: images [B·Do, C·kd, H, W]."""
    layer, x = layer_of("conv3d of groups"), input_of("conv3d of groups")
    rows, _, geometry = layer._rule_input(x, None)
    assert rows.shape == (2 * 3, 4 * 2, 4, 3) and rows.numel() <= 2 * x.numel()
    assert geometry == {"stride": [2, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 2}
    assert layer._rule_weight(layer.weight).data_ptr() == layer.weight.data_ptr()
    assert math.prod(layer._rule_weight(layer.weight).shape) == layer.weight.numel()


def test_probes_pool_the_axes_of_a_convolution():
    """[B, C, L] of a Conv1d is no sequence [B, T, N]: its channels are never averaged."""
    from hebbkern.evaluation.readout import pooled

    x = random((2, 4, 9))
    torch.testing.assert_close(pooled(x, 8, sequence=False), nn.functional.adaptive_avg_pool1d(x, 2))
    torch.testing.assert_close(pooled(x, 8), x.mean(1))
    volumes = random((2, 4, 5, 4, 3))
    torch.testing.assert_close(pooled(volumes, 33, "max"), nn.functional.adaptive_max_pool3d(volumes, 2))
    assert pooled(volumes, 1).shape == (2, 4, 1, 1, 1)
    model = nn.Sequential(layer_of("conv1d, circular"))
    x, labels = random((9, 2, 7)), torch.arange(9) % 3
    probes = hk.evaluation.linear_probes(model, (x, labels), (x, labels), most=16, iterations=3)
    assert set(probes) == {"0"}
