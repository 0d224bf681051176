"""Grouped convolutions: every operator and rule gives what one layer for each group would give, side by side."""

import pytest
import torch

import cases
import hebbkern as hk
import oracle
from hebbkern import reference


def layer(x, weight, groups, **geometry):
    return cases.Layer(x, weight, {"groups": groups, **geometry})


LAYERS = [
    layer((2, 6, 9, 8), (6, 1, 3, 3), 6, padding=1),  # depthwise
    layer((2, 5, 7, 7), (10, 1, 3, 3), 5, padding=1, stride=2),  # and two neurons a channel
    layer((2, 8, 9, 20), (16, 2, 3, 2), 4, padding=(0, 1), stride=(1, 3)),
    layer((1, 6, 11, 9), (9, 2, 3, 3), 3, padding=(1, 2), stride=2, dilation=(2, 1)),
    layer((3, 4, 6, 5), (70, 2, 2, 2), 2),
    layer((2, 6, 4, 4), (12, 2, 1, 1), 3),
    layer((2, 4, 1, 17), (8, 2, 1, 5), 2, padding=(0, 2)),
    layer((1, 4, 14, 11), (132, 2, 3, 3), 2),  # more than a tile of neurons and of patches in a group
    layer((2, 60, 5, 5), (6, 30, 3, 3), 2),  # more than 256 inputs of a few neurons
]
LARGE = [layer((3, 64, 14, 14), (64, 1, 3, 3), 64, padding=1), layer((2, 96, 8, 8), (192, 48, 3, 3), 2, padding=1)]
RESPONSES = [{}, {"p": 3.0}, {"cosine": True}]
DENSE = [
    {"activation": "relu", "decay": "triangular"},
    {"activation": "linear", "decay": "diagonal"},
    {"activation": "tanh", "decay": "activity"},
    {"activation": "linear", "decay": "none"},
    {"activation": "softmax", "decay": "diagonal", "temperature": 0.7},
]
RULES = [
    hk.KrotovHopfield(patches="centred"),
    hk.WTA(),
    hk.WTA(k=2, coefficient="response", normalise="row_l2", patches="standardised"),
    hk.WTA(similarity="dot", average=False),
    hk.Sanger(),
    hk.Oja(patches="centred"),
    hk.Hebb(),
    hk.SoftWTA(normalise="global_max"),
    hk.Supervised(),
]


def parts(layer, x, weight, *rows):
    """For each group its slices of x and weight, of masks and results, and the geometry of a layer of its own."""
    groups = layer.geometry["groups"]
    geometry = {name: value for name, value in layer.geometry.items() if name != "groups"}
    rows = [[None] * groups if part is None else part.chunk(groups) for part in rows]
    return zip(x.chunk(groups, 1), weight.chunk(groups), *rows, [geometry] * groups, strict=True)


def within(named, first):
    """Neurons, or patches, by their number in a group that begins with `first`; -1 stays."""
    return torch.where(named < 0, named, named - first)


def each(layer):
    return layer.neurons // layer.geometry["groups"]


@pytest.mark.slow(4, on="triton")
@pytest.mark.parametrize("response", RESPONSES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_neurons_of_a_group_compete(backend, layer, dtype, patches, response):
    x, weight = cases.tensors(layer, dtype, backend.device)
    k, eligible = min(each(layer), 2), cases.some(layer.neurons, backend.device, share=0.8)
    options = {"k": k, "patches": patches, **response}
    for mask in (None, eligible):
        winners, responses = hk.ops.compete(x, weight, eligible=mask, **options, **layer.geometry)
        for group, part in enumerate(parts(layer, x, weight, mask, winners, responses)):
            *tensors, may_win, named, values, geometry = part
            got = within(named, group * each(layer)), values
            oracle.check_compete(got, *tensors, eligible=may_win, **options, **geometry)


@pytest.mark.slow(2, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_nearest_patch_is_one_of_the_group(backend, layer, dtype, patches):
    x, weight = cases.tensors(layer, dtype, backend.device)
    eligible = cases.some(layer.neurons, backend.device, share=0.8)
    nearest, distance = hk.ops.nearest_patch(x, weight, eligible=eligible, patches=patches, **layer.geometry)
    groups = layer.geometry["groups"]
    count = len(reference.unfold(oracle.exact(x), layer.kernel, **layer.geometry)) // groups
    for group, part in enumerate(parts(layer, x, weight, eligible, nearest, distance)):
        *tensors, looked_for, found, far, geometry = part
        got = within(found, group * count), far
        oracle.check_nearest_patch(got, *tensors, eligible=looked_for, patches=patches, **geometry)


@pytest.mark.slow(4, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_patches_teach_neurons_of_their_group(backend, layer, dtype, patches):
    x, weight = cases.tensors(layer, dtype, backend.device)
    groups, frozen = layer.geometry["groups"], cases.some(layer.neurons, backend.device, share=0.2)
    count = len(reference.unfold(oracle.exact(x), layer.kernel, **layer.geometry)) // groups
    rows, wide = (groups * count, 2), oracle.result_dtype(dtype)
    own = cases.integers(rows, -1, each(layer) - 1, torch.int64, backend.device)
    first = torch.arange(groups, device=backend.device).repeat_interleave(count)[:, None] * each(layer)
    targets = torch.where(own < 0, own, own + first)
    entries = [cases.random(rows, wide, backend.device, seed) for seed in (3, 4)]
    options = {"kernel": layer.kernel, "patches": patches}
    results = hk.ops.accumulate(
        x, targets, entries[0], neurons=layer.neurons, responses=entries[1], frozen=frozen, **options, **layer.geometry
    )
    for image, _, mask, named, c, s, *got, geometry in parts(layer, x, weight, frozen, own, *entries, *results):
        oracle.check_accumulate(got, image, named, c, each(layer), responses=s, frozen=mask, **options, **geometry)


@pytest.mark.slow(4, on="triton")
@pytest.mark.parametrize("rule", DENSE, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_dense_rules_order_within_a_group(backend, layer, dtype, patches, rule):
    x, weight = cases.tensors(layer, dtype, backend.device)
    frozen = cases.some(layer.neurons, backend.device, share=0.2)
    total, count = hk.ops.dense_update(x, weight, frozen=frozen, patches=patches, **rule, **layer.geometry)
    assert total.shape == weight.shape and total.is_contiguous()
    for *tensors, mask, got, geometry in parts(layer, x, weight, frozen, total):
        oracle.check_dense_update((got, count), *tensors, frozen=mask, patches=patches, **rule, **geometry)


def step(rule, backend, layer, x, weight, **options):
    labels = cases.integers(x.shape[:1], -1, layer.neurons - 1, torch.int64, backend.device, seed=7)
    moved = weight.clone()
    rule.step_(moved, x, lr=0.05, labels=labels if rule.uses_labels else None, **options)
    return moved


def fits(rule, layer):
    return getattr(rule, "k", 1) <= each(layer)


@pytest.mark.slow(3, on="triton")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_step_is_that_of_its_parts(backend, layer, dtype, rule):
    """Bit for bit where one operator takes the step; frozen rows keep their bits."""
    if not fits(rule, layer):
        pytest.skip(f"the rule takes {rule.k} neurons of a group, which has {each(layer)}")
    x, weight = cases.tensors(layer, dtype, backend.device)
    frozen = cases.some(layer.neurons, backend.device, share=0.3)
    moved = step(rule, backend, layer, x, weight, frozen=frozen, **layer.geometry)
    labels = cases.integers(x.shape[:1], -1, layer.neurons - 1, torch.int64, backend.device, seed=7)
    options = {"labels": labels if rule.uses_labels else None, "frozen": frozen, **layer.geometry}
    want = weight.clone()
    rule.apply_(want, rule.update(weight, x, **options), lr=0.05, frozen=frozen)
    assert torch.equal(moved, want) and (rule.uses_labels or not torch.equal(moved, weight))
    assert torch.equal(moved[frozen], weight[frozen])


@pytest.mark.slow(3, on="triton")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_step_is_that_of_layers_side_by_side(backend, layer, rule):
    """But for global_max, which divides by the largest entry of the whole layer."""
    if not fits(rule, layer):
        pytest.skip(f"the rule takes {rule.k} neurons of a group, which has {each(layer)}")
    x, weight = cases.tensors(layer, torch.float64, backend.device)
    moved = step(rule, backend, layer, x, weight, **layer.geometry)
    labels = cases.integers(x.shape[:1], -1, layer.neurons - 1, torch.int64, backend.device, seed=7)
    alone, change = [], []
    normalise = "global_max" if isinstance(rule, hk.KrotovHopfield) else getattr(rule, "normalise", "none")
    for group, (image, rows, geometry) in enumerate(parts(layer, x, weight)):
        own, part = labels - group * each(layer), rows.clone()
        own = own.masked_fill((own < 0) | (own >= each(layer)), -1)
        rule.step_(part, image, lr=0.05, labels=own if rule.uses_labels else None, **geometry)
        if normalise == "global_max":
            update = rule.update(rows, image, labels=None, **geometry)
            delta = update.sum if update.decay is None else update.sum - update.decay.view(-1, 1, 1, 1) * rows
            delta = delta if update.denominator is None else delta / update.denominator.view(-1, 1, 1, 1)
            change.append(delta.abs().max())
        alone.append(part)
    if normalise == "global_max":
        largest = max(change)
        alone = [
            rows + (part - rows) * own / largest
            for part, rows, own in zip(alone, weight.chunk(len(alone)), change, strict=True)
        ]
    torch.testing.assert_close(moved, torch.cat(alone), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
def test_layouts(backend, of_x, of_weight):
    layer = LAYERS[2]
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    for rule in (hk.WTA(k=2), hk.Sanger()):
        want = step(rule, backend, layer, x, weight, **layer.geometry)
        laid = cases.laid_out(weight, of_weight)
        rule.step_(laid, cases.laid_out(x, of_x), lr=0.05, **layer.geometry)
        torch.testing.assert_close(laid, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [hk.WTA(), hk.Oja()], ids=str)
@pytest.mark.parametrize("layer", LARGE, ids=str)
def test_large_layers(backend, layer, rule):
    if backend.choice == "triton" and backend.device == "cpu":
        pytest.skip("takes minutes in Triton's interpreter")
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    moved = step(rule, backend, layer, x, weight, **layer.geometry)
    for part, (image, rows, geometry) in zip(
        moved.chunk(layer.geometry["groups"]), parts(layer, x, weight), strict=True
    ):
        want = rows.clone()
        rule.step_(want, image, lr=0.05, **geometry)
        torch.testing.assert_close(part, want, rtol=1e-4, atol=1e-5)


def test_a_blank_patch_of_one_group_teaches_only_the_others(backend):
    layer = LAYERS[2]
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    x[:, 2:4] = 0  # all patches of group 1
    moved = step(hk.WTA(), backend, layer, x, weight, **layer.geometry)
    assert torch.equal(moved[4:8], weight[4:8]) and not torch.equal(moved[:4], weight[:4])
    winners, _ = hk.ops.compete(x, weight, **layer.geometry)
    assert (winners.chunk(4)[1] == -1).all() and (winners.chunk(4)[2] >= 8).all()


def test_an_empty_batch_teaches_nothing(backend):
    layer = LAYERS[1]
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    for rule in RULES[:-1]:
        if fits(rule, layer):
            assert torch.equal(step(rule, backend, layer, x[:0], weight, **layer.geometry), weight)


@pytest.mark.parametrize("groups", [0, -1, 4, 5])
def test_groups_that_do_not_divide_are_refused(backend, groups):
    x, weight = cases.random((1, 6, 5, 5)), cases.random((6, 1, 3, 3))
    with pytest.raises(ValueError, match=f"groups must divide x's 6 channels and the 6 neurons, got {groups}"):
        hk.ops.compete(x, weight, groups=groups)
    with pytest.raises(ValueError, match=f"groups must divide x's 6 channels and the 6 neurons, got {groups}"):
        hk.ops.accumulate(x, torch.zeros(9, 1, dtype=torch.int32), torch.ones(1), neurons=6, kernel=3, groups=groups)


def test_groups_of_other_shapes_are_refused(backend):
    x, weight = cases.random((1, 6, 5, 5)), cases.random((6, 1, 3, 3))
    with pytest.raises(ValueError, match="weight must have x's 6 channels / 3 groups, got 1"):
        hk.ops.dense_update(x, weight, groups=3)
    with pytest.raises(ValueError, match="groups must be 1 for a linear layer, got 2"):
        hk.ops.compete(cases.random((3, 4)), cases.random((4, 4)), groups=2)
    with pytest.raises(ValueError, match=r"k must be between 1 and min\(64, 1 neurons of a group\), got 2"):
        hk.ops.compete(x, weight, 2, groups=6)


def test_a_patch_names_only_neurons_of_its_group(backend):
    if backend.device == "cuda":
        pytest.skip("on a GPU no operator looks at values")
    x, targets = cases.random((1, 4, 3, 3)), torch.tensor([[1], [1]], dtype=torch.int32)
    with pytest.raises(ValueError, match="targets must name neurons 2 to 3, or -1 for no neuron in patches of group 1"):
        hk.ops.accumulate(x, targets, torch.ones(1), neurons=4, kernel=3, groups=2)


def test_a_label_beyond_the_last_neuron_is_refused(backend):
    x, weight = cases.random((2, 4, 3, 3)), cases.random((4, 2, 3, 3))
    if backend.device == "cuda":
        pytest.skip("on a GPU no operator looks at values")
    for label in (4, -2):
        before = weight.clone()
        with pytest.raises(ValueError, match=f"must name neurons .*, got {label}"):
            hk.Supervised().step_(weight, x, lr=0.1, labels=torch.tensor([0, label]), groups=2)
        assert torch.equal(weight, before)
        with pytest.raises(ValueError, match=f"must name neurons .*, got {label}"):
            hk.Supervised().update(weight, x, labels=torch.tensor([0, label]), groups=2)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_specification_is_one_layer_a_group(layer):
    """Of hebbkern.reference, to which the other tests of this file compare one group at a time."""
    x, weight = (oracle.exact(tensor) for tensor in cases.tensors(layer, torch.float64))
    slices = list(parts(layer, torch.from_numpy(x), torch.from_numpy(weight)))
    for patches in cases.PATCHES:
        whole = reference.sanger(weight, x, 0.1, patches=patches, **layer.geometry)
        own = [reference.sanger(rows, image, 0.1, patches=patches, **geometry) for image, rows, geometry in slices]
        assert abs(whole - torch.cat([torch.from_numpy(part) for part in own]).numpy()).max() < 1e-12
        whole = reference.wta(weight, x, 0.1, patches=patches, **layer.geometry)
        own = [reference.wta(rows, image, 0.1, patches=patches, **geometry) for image, rows, geometry in slices]
        assert abs(whole - torch.cat([torch.from_numpy(part) for part in own]).numpy()).max() < 1e-12
        _, distance = reference.nearest_patch(x, weight, patches=patches, **layer.geometry)
        far = [reference.nearest_patch(image, rows, patches=patches, **geometry)[1] for image, rows, geometry in slices]
        assert abs(distance - torch.cat([torch.from_numpy(part) for part in far]).numpy()).max() < 1e-12


PIECES = [  # strips of rows, parts of the images, groups that are copied together, more winners than small groups keep
    layer((1, 2, 130, 70), (4, 1, 5, 5), 2, padding=2),
    layer((1, 2, 67, 300), (2, 1, 3, 2), 2, stride=(3, 2), padding=(2, 0), dilation=(2, 3)),
    layer((35, 40, 3, 3), (40, 1, 3, 3), 40, padding=1),
    layer((2, 34, 6, 7), (34, 2, 3, 3), 17, padding=1),
    layer((2, 4, 6, 6), (14, 2, 3, 3), 2),
]


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("layer", PIECES, ids=str)
def test_pieces_of_the_work_fit_together(backend, layer, patches):
    if backend.choice == "triton" and backend.device == "cpu":
        pytest.skip("takes minutes in Triton's interpreter")
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    k = min(each(layer), 6)
    winners, responses = hk.ops.compete(x, weight, k, patches=patches, **layer.geometry)
    total, _ = hk.ops.dense_update(x, weight, patches=patches, **layer.geometry)
    for group, part in enumerate(parts(layer, x, weight, winners, responses, total)):
        *tensors, named, values, sums, geometry = part
        got = within(named, group * each(layer)), values
        oracle.check_compete(got, *tensors, k, patches=patches, **geometry)
        count = total.new_full((1,), len(named))
        oracle.check_dense_update((sums, count), *tensors, patches=patches, **geometry)
    moved, want = weight.clone(), weight.clone()
    rule = hk.WTA(k=k, coefficient="response", patches=patches)
    rule.step_(moved, x, lr=0.1, **layer.geometry)
    rule.apply_(want, rule.update(weight, x, **layer.geometry), lr=0.1)
    assert torch.equal(moved, want) and not torch.equal(moved, weight)


@pytest.mark.parametrize("rule", [hk.WTA(), hk.Sanger(), hk.SoftWTA(), hk.KrotovHopfield(patches="centred")], ids=str)
def test_layouts_and_threads_change_no_bits(rule):
    """Of the compiled CPU kernels."""
    for layer in (PIECES[2], PIECES[3]) if not hasattr(rule, "delta") else (PIECES[3],):
        x, weight = cases.tensors(layer, torch.float32)
        results, threads = [], torch.get_num_threads()
        try:
            for number in (1, 2, 3, 7):
                torch.set_num_threads(number)
                for layout in ("contiguous", "channels_last", "sliced"):
                    moved = weight.clone()
                    rule.step_(moved, cases.laid_out(x, layout), lr=0.1, **layer.geometry)
                    results.append(moved)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [(0, 0, 129, 69), (0, 1, 129, 0), (0, 1, 64, 33)], ids=str)
def test_a_pixel_that_is_not_finite_is_refused_wherever_it_lies(backend, at, value):
    """Also where no patch reads it, and whatever the group."""
    if backend.device == "cuda":
        pytest.skip("on a GPU no operator looks at values")
    x, weight = cases.random((1, 2, 130, 70)), cases.random((2, 1, 3, 3))
    x[at] = value
    for rule in (hk.WTA(), hk.Sanger(), hk.SoftWTA()):
        before = weight.clone()
        with pytest.raises(ValueError, match="x must be finite"):
            rule.step_(weight, x, lr=0.1, stride=4, groups=2)
        assert torch.equal(weight, before)


def test_responses_that_overflow_are_refused(backend):
    if backend.device == "cuda":
        pytest.skip("on a GPU no operator looks at values")
    x, weight = cases.random((2, 4, 6, 6)).abs() * 1e20, cases.random((4, 1, 3, 3)).abs() * 1e20
    for rule in (hk.WTA(similarity="dot"), hk.Sanger()):
        before = weight.clone()
        with pytest.raises(ValueError, match=r"finite (responses|sums)"):
            rule.step_(weight, x, lr=0.1, groups=4)
        assert torch.equal(weight, before)


def test_of_equal_responses_the_lower_neuron_wins_when_a_better_one_follows(backend):
    weight = torch.tensor([5.0, 5.0, 7.0, 5.0, 2.0, 2.0, 2.0, 3.0]).view(8, 1, 1, 1)
    for k, want in (
        (1, [[2], [7]]),
        (2, [[2, 0], [7, 4]]),
        (3, [[2, 0, 1], [7, 4, 5]]),
        (4, [[2, 0, 1, 3], [7, 4, 5, 6]]),
    ):
        winners, _ = hk.ops.compete(torch.ones(1, 2, 1, 1), weight, k, groups=2)
        assert winners.tolist() == want


@pytest.mark.slow(3, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[2], LAYERS[4]], ids=str)
def test_a_blank_patch_counts_nowhere_whatever_names_it(backend, layer, patches):
    """Neither in a sum nor in a decay or a count; a step is that of its parts, with labels too."""
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    x[..., : x.shape[-1] * 2 // 3] = 0 if patches == "raw" else 0.7
    groups = layer.geometry["groups"]
    count = len(reference.unfold(oracle.exact(x), layer.kernel, **layer.geometry))
    targets = torch.arange(groups, device=backend.device).repeat_interleave(count // groups)[:, None] * each(layer)
    one = torch.ones(1, device=backend.device)
    options = {"neurons": layer.neurons, "kernel": layer.kernel, "patches": patches, **layer.geometry}
    results = hk.ops.accumulate(x, targets, one, **options)
    for image, _, total, decay, entries, geometry in parts(layer, x, weight, *results):
        own = torch.zeros(count // groups, 1, dtype=torch.int64, device=backend.device)
        settings = {"kernel": layer.kernel, "patches": patches, **geometry}
        oracle.check_accumulate((total, decay, entries), image, own, one, each(layer), **settings)
        assert 0 < entries[0] < len(own)
    rule, labels = hk.Supervised(patches=patches), torch.arange(len(x), device=backend.device)
    moved, want = weight.clone(), weight.clone()
    rule.step_(moved, x, lr=0.1, labels=labels, **layer.geometry)
    rule.apply_(want, rule.update(weight, x, labels=labels, **layer.geometry), lr=0.1)
    assert torch.equal(moved, want)
