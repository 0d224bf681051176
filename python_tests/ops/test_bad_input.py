"""Every argument of every operator, wrong in every way: the message, and memory as it was."""

import re

import pytest
import torch

import calls
import cases
import hebbkern as hk

NAN, INF = float("nan"), float("inf")


def spoilt(tensor, value):
    """With one entry replaced, in the last place looked at."""
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def of(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def geometry_rows(operator, weight="weight"):
    """(operator, kind of layer, what is wrong, message) for everything that reads patches."""
    linear = "stride, padding and dilation must be 1, 0 and 1 for a linear layer, got "
    axes = "x must be [batch, inputs] or [batch, channels, height, width], got shape "
    dtypes = "x must be float32, float64, bfloat16 or float16, got "
    rows = [
        ("linear", {"x": of(3)}, axes + "[3]"),
        ("linear", {"x": of(3, 20, 1)}, axes + "[3, 20, 1]"),
        ("linear", {"x": of(1, 3, 20, 1, 1)}, axes + "[1, 3, 20, 1, 1]"),
        ("linear", {"x": of(64, 20, dtype=torch.int64)}, dtypes + "int64"),
        ("linear", {"x": of(64, 20, dtype=torch.bool)}, dtypes + "bool"),
        ("linear", {"x": of(64, 20, dtype=torch.uint8)}, dtypes + "uint8"),
        ("linear", {"patches": "foo"}, 'patches must be "raw", "centred" or "standardised", got "foo"'),
        ("linear", {"stride": 2}, linear + "[2, 2], [0, 0], [1, 1]"),
        ("linear", {"padding": (0, 1)}, linear + "[1, 1], [0, 1], [1, 1]"),
        ("linear", {"dilation": 3}, linear + "[1, 1], [0, 0], [3, 3]"),
        ("convolution", {"stride": (0, 1)}, "stride must be two numbers of at least 1, got [0, 1]"),
        ("convolution", {"stride": -1}, "stride must be two numbers of at least 1, got [-1, -1]"),
        ("convolution", {"stride": (1, 1, 1)}, "stride must be two numbers of at least 1, got [1, 1, 1]"),
        ("convolution", {"padding": -1}, "padding must be two numbers of at least 0, got [-1, -1]"),
        ("convolution", {"padding": (1,)}, "padding must be two numbers of at least 0, got [1]"),
        ("convolution", {"padding": 2**31}, "padding must be two numbers of at most 2147483647, got [2147483648, 21"),
        ("convolution", {"dilation": (1, 0)}, "dilation must be two numbers of at least 1, got [1, 0]"),
        ("convolution", {"dilation": ()}, "dilation must be two numbers of at least 1, got []"),
        (
            "convolution",
            {"dilation": (4, 1), "padding": (0, 0)},
            f"{weight} must fit into the padded image 9x8, got a kernel that spans 13x3",
        ),
        (
            "convolution",
            {"x": of(2, 3, 2, 2), "padding": (1, 0), "dilation": 1},
            f"{weight} must fit into the padded image 4x2, got a kernel that spans 4x3",
        ),
        *(
            (kind, {"x": lambda good, bad=bad: spoilt(good["x"], bad)}, "x must be finite, got a NaN or an infinity")
            for kind in ("linear", "convolution")
            for bad in (NAN, INF, -INF)
        ),
    ]
    return [(operator, *row) for row in rows]


def weight_rows(operator):
    """For everything that takes x and weight."""
    conv = "weight must be [neurons, channels, height, width] like x's 4 dimensions, got shape "
    none = "weight must have at least one neuron and one input, got shape "
    rows = [
        (
            "linear",
            {"weight": of(4, 3, 5, 5)},
            "weight must be [neurons, inputs] like x's 2 dimensions, got shape [4, 3, 5, 5]",
        ),
        ("linear", {"weight": of(20)}, "weight must be [neurons, inputs] like x's 2 dimensions, got shape [20]"),
        ("convolution", {"weight": of(10, 36)}, conv + "[10, 36]"),
        ("convolution", {"weight": of(10, 3, 4)}, conv + "[10, 3, 4]"),
        ("linear", {"weight": of(10, 20, dtype=torch.float64)}, "weight must have x's dtype float32, got float64"),
        ("linear", {"weight": of(10, 20, dtype=torch.bfloat16)}, "weight must have x's dtype float32, got bfloat16"),
        ("linear", {"weight": of(10, 20).to("meta")}, "weight must be on x's device cpu, got meta"),
        ("linear", {"weight": of(10, 19)}, "weight must have x's 20 inputs, got 19"),
        ("convolution", {"weight": of(10, 4, 4, 3)}, "weight must have x's 3 channels, got 4"),
        ("linear", {"weight": of(0, 20)}, none + "[0, 20]"),
        ("linear", {"weight": of(10, 0)}, none + "[10, 0]"),
        ("convolution", {"weight": of(10, 3, 0, 3)}, none + "[10, 3, 0, 3]"),
        *(
            (
                kind,
                {"weight": lambda good, bad=bad: spoilt(good["weight"], bad)},
                "weight must be finite, got a NaN or an infinity",
            )
            for kind in ("linear", "convolution")
            for bad in (NAN, INF, -INF)
        ),
    ]
    return [(operator, *row) for row in rows]


def mask_rows(operator, mask):
    want = f"{mask} must be bool of shape [10] on cpu, got "
    rows = [
        ("linear", {mask: of(3)}, want + "float32 of shape [3] on cpu"),
        ("linear", {mask: of(9, dtype=torch.bool)}, want + "bool of shape [9] on cpu"),
        ("convolution", {mask: of(11, dtype=torch.bool)}, want + "bool of shape [11] on cpu"),
        ("linear", {mask: of(10, 1, dtype=torch.bool)}, want + "bool of shape [10, 1] on cpu"),
        ("linear", {mask: of(dtype=torch.bool)}, want + "bool of shape [] on cpu"),
        ("linear", {mask: of(10, dtype=torch.uint8)}, want + "uint8 of shape [10] on cpu"),
        ("linear", {mask: of(10, dtype=torch.bool).to("meta")}, want + "bool of shape [10] on meta"),
    ]
    return [(operator, *row) for row in rows]


def typed_rows(operator, argument, shapes, owner):
    """For optional float tensors of a fixed shape; ``shapes`` as the message names them."""
    want, device = f"{argument} must be float32 of shape {shapes}, got ", f"{argument} must be on {owner}'s device cpu"

    def good(change):
        return {argument: lambda arguments: change(arguments[argument])}

    rows = [
        ("linear", {argument: of(3)}, want + "float32 of shape [3]"),
        ("linear", {argument: of()}, want + "float32 of shape []"),
        ("linear", {argument: of(1, 1, 2)}, want + "float32 of shape [1, 1, 2]"),
        ("linear", good(torch.Tensor.double), want + "float64 of shape "),
        ("linear", good(torch.Tensor.half), want + "float16 of shape "),
        ("linear", good(torch.Tensor.int), want + "int32 of shape "),
        ("linear", good(lambda tensor: tensor.to("meta")), device + ", got meta"),
        *(
            ("linear", good(lambda tensor, bad=bad: spoilt(tensor, bad)), f"{argument} must be finite, got a NaN or an")
            for bad in (NAN, INF, -INF)
        ),
    ]
    return [(operator, *row) for row in rows]


COMPETE = [
    ("linear", {"k": 0}, "k must be between 1 and min(64, 10 neurons), got 0"),
    ("linear", {"k": -3}, "k must be between 1 and min(64, 10 neurons), got -3"),
    ("convolution", {"k": 11}, "k must be between 1 and min(64, 10 neurons), got 11"),
    (
        "linear",
        {"k": 65, "weight": of(99, 20), "eligible": None},
        "k must be between 1 and min(64, 99 neurons), got 65",
    ),
    ("linear", {"p": 0.5}, "p must be a finite number of at least 1, got 0.5"),
    ("linear", {"p": 0.0}, "p must be a finite number of at least 1, got 0"),
    ("linear", {"p": -2.0}, "p must be a finite number of at least 1, got -2"),
    ("linear", {"p": NAN}, "p must be a finite number of at least 1, got nan"),
    ("linear", {"p": INF}, "p must be a finite number of at least 1, got inf"),
    ("linear", {"p": 3.0, "cosine": True}, "p must be 2 with cosine responses, got 3"),
    ("linear", {"p": 1.5, "cosine": True}, "p must be 2 with cosine responses, got 1.5"),
    (
        "linear",
        {"p": 99.0, "weight": 9 * of(10, 20)},
        "weight and p must give finite powers, got an overflow of float32",
    ),
]
TARGETS = "targets must be int32 or int64 of shape [patches = 64, ranks], got "
ACCUMULATE = [
    ("linear", {"targets": of(3)}, TARGETS + "float32 of shape [3]"),
    ("linear", {"targets": of(64, 2)}, TARGETS + "float32 of shape [64, 2]"),
    ("linear", {"targets": of(64, 2, dtype=torch.int16)}, TARGETS + "int16 of shape [64, 2]"),
    ("linear", {"targets": of(63, 2, dtype=torch.int32)}, TARGETS + "int32 of shape [63, 2]"),
    ("linear", {"targets": of(64, dtype=torch.int64)}, TARGETS + "int64 of shape [64]"),
    ("linear", {"targets": of(64, 2, dtype=torch.int32).to("meta")}, "targets must be on x's device cpu, got meta"),
    *(
        (
            kind,
            {"targets": lambda good, bad=bad, to=to: spoilt(good["targets"].to(to), bad)},
            f"targets must name neurons 0 to 9, or -1 for no neuron, got {bad}",
        )
        for kind in ("linear", "convolution")
        for bad, to in ((10, torch.int32), (12, torch.int64), (-2, torch.int32), (2**31 + 1, torch.int64))
    ),
    ("linear", {"x": of(64, 0)}, "x must have at least one input, got shape [64, 0]"),
    ("linear", {"neurons": 0}, "neurons must be at least 1, got 0"),
    ("linear", {"neurons": -1}, "neurons must be at least 1, got -1"),
    ("linear", {"kernel": (3, 3)}, "kernel must be empty for x [batch, inputs], got [3, 3]"),
    ("convolution", {"kernel": ()}, "kernel must be two numbers of at least 1 for images, got []"),
    ("convolution", {"kernel": 0}, "kernel must be two numbers of at least 1 for images, got [0, 0]"),
    ("convolution", {"kernel": (3, 3, 3)}, "kernel must be two numbers of at least 1 for images, got [3, 3, 3]"),
    ("linear", {"coefficients": of(64, 3)}, "coefficients must be float32 of shape [2] or [64, 2], got float32 of"),
    ("linear", {"responses": of(2)}, "responses must be float32 of shape [64, 2], got float32 of shape [2]"),
]
DENSE_UPDATE = [
    ("linear", {"activation": "foo"}, 'activation must be "linear", "relu", "tanh" or "softmax", got "foo"'),
    ("linear", {"decay": "foo"}, 'decay must be "triangular", "diagonal", "activity" or "none", got "foo"'),
    ("linear", {"activation": "softmax"}, 'decay must be "diagonal" or "none" with softmax, got "triangular"'),
    *(
        ("linear", {"temperature": bad}, f"temperature must be a finite number above 0, got {bad:g}")
        for bad in (0.0, -1.0, NAN, INF)
    ),
]
APPLY = [
    ("linear", {"weight": of(10)}, "weight must be [neurons, inputs] or [neurons, channels, height, width], got shape"),
    ("linear", {"weight": of(10, 20).int()}, "weight must be float32, float64, bfloat16 or float16, got int32"),
    ("linear", {"weight": of(0, 20)}, "weight must have at least one neuron and one input, got shape [0, 20]"),
    (
        "linear",
        {"weight": of(10, 1).expand(10, 20)},
        "weight must hold each entry once, got strides [1, 0] for shape [10, 20]",
    ),
    ("linear", {"weight": of(20).expand(10, 20)}, "weight must hold each entry once, got strides [0, 1] for shape"),
    (
        "linear",
        {"weight": torch.ones(200).as_strided((10, 20), (3, 1))},
        "weight must hold each entry once, got strides [3, 1] for shape [10, 20]",
    ),
    ("convolution", {"sum": of(10, 36)}, "sum must be float32 of shape [10, 3, 4, 3], got float32 of shape [10, 36]"),
    ("linear", {"sum": of(10, 1)}, "sum must be float32 of shape [10, 20], got float32 of shape [10, 1]"),
    ("linear", {"decay": of(1)}, "decay must be float32 of shape [10], got float32 of shape [1]"),
    ("linear", {"denominator": of(11)}, "denominator must be float32 of shape [10] or [1], got float32 of shape [11]"),
    *(("linear", {"lr": bad}, f"lr must be finite, got {bad:g}") for bad in (NAN, INF, -INF)),
    *(
        ("linear", {"rate_power": bad}, f"rate_power must be a finite number of at least 0, got {bad:g}")
        for bad in (-1.0, NAN, INF)
    ),
    ("linear", {"normalise": "foo"}, 'normalise must be "none", "row_max", "row_l2" or "global_max", got "foo"'),
    *(
        ("linear", {"weight": lambda good, bad=bad: spoilt(good["weight"], bad)}, "weight must be finite, got a NaN or")
        for bad in (NAN, INF, -INF)
    ),
    ("linear", {"lr": 3e38, "normalise": "none"}, "weight must stay finite, got a step that overflows it"),
]
LABELLED = {"k": 1, "coefficients": (1.0,), "decay_by_response": False}
LABELS = "labels must be int64 or int32 of shape [64], the class of each sample, got "
WINNER_STEP = [
    *((kind, {key: value for key, value in wrong.items() if key != "eligible"}, text) for kind, wrong, text in COMPETE),
    *(
        ("linear", {"coefficients": bad}, "coefficients must be k = 2 finite numbers, got " + got)
        for bad, got in (
            ((1.5,), "[1.5]"),
            ((), "[]"),
            ((1.0, NAN), "[1, nan]"),
            ((-INF, 1.0), "[-inf, 1]"),
            ((1.0, 1e39), "[1, 1e+39]"),
        )
    ),
    *(row for row in APPLY if "each entry once" in row[2] or "normalise" in row[1] or row[1].keys() == {"lr"}),
    ("linear", LABELLED | {"labels": of(64)}, LABELS + "float32 of shape [64]"),
    ("linear", LABELLED | {"labels": of(63, dtype=torch.int64)}, LABELS + "int64 of shape [63]"),
    ("linear", LABELLED | {"labels": of(64, 1, dtype=torch.int64)}, LABELS + "int64 of shape [64, 1]"),
    (
        "linear",
        LABELLED | {"labels": of(64, dtype=torch.int32).to("meta")},
        "labels must be on x's device cpu, got meta",
    ),
    *(
        (
            "linear",
            LABELLED | {"labels": spoilt(of(64, dtype=to), bad)},
            f"labels must name neurons 0 to 9, or -1 for no neuron, got {bad}",
        )
        for bad, to in ((10, torch.int32), (-2, torch.int32), (2**31 + 1, torch.int64))
    ),
    *(
        ("linear", LABELLED | {"labels": of(64, dtype=torch.int64)} | more, message)
        for more, message in (
            ({"k": 2, "coefficients": (1.0, 1.0)}, "k must be 1 with labels, got 2"),
            ({"by_response": True}, "by_response must be False with labels, got True"),
            ({"decay_by_response": True}, "decay_by_response must be False with labels, got True"),
            ({"weight": NAN * of(10, 20)}, "weight must be finite, got a NaN or an infinity"),
            (
                {"x": 3e38 * of(64, 20), "patches": "raw", "frozen": None},
                "x and weight must give finite sums, got an overflow of float32",
            ),
        )
    ),
]
KWINNERS = [
    ("linear", {"k": 0}, "k must be between 1 and 20 entries along dim 1, got 0"),
    ("linear", {"k": 21}, "k must be between 1 and 20 entries along dim 1, got 21"),
    ("linear", {"k": 21, "dim": -1}, "k must be between 1 and 20 entries along dim 1, got 21"),
    ("linear", {"y": of()}, "y must have at least one dimension, got shape []"),
    ("linear", {"k": 65, "dim": 0}, "k must be between 1 and 64 entries along dim 0, got 65"),
    ("linear", {"dim": 2}, "dim must be between -2 and 1, got 2"),
    ("linear", {"dim": -3}, "dim must be between -2 and 1, got -3"),
    ("linear", {"y": of(64, 20).int()}, "y must be float32, float64, bfloat16 or float16, got int32"),
    *(
        ("linear", {"y": lambda good, bad=bad: spoilt(good["y"], bad)}, "y must be finite, got a NaN or an infinity")
        for bad in (NAN, INF, -INF)
    ),
]
DENSE_STEP = [
    ("linear", {"activation": "softmax"}, 'activation must be "linear", "relu" or "tanh", got "softmax"'),
    ("linear", {"activation": "foo"}, 'activation must be "linear", "relu" or "tanh", got "foo"'),
    ("linear", {"decay": "foo"}, 'decay must be "triangular", "diagonal", "activity" or "none", got "foo"'),
    *(("linear", {"lr": bad}, f"lr must be finite, got {bad:g}") for bad in (NAN, INF, -INF)),
]
TABLES = {
    "compete": COMPETE,
    "accumulate": ACCUMULATE,
    "dense_update": DENSE_UPDATE,
    "apply_": APPLY,
    "kwinners": KWINNERS,
}
TABLES["dense_step_"] = DENSE_STEP
TABLES["winner_step_"] = WINNER_STEP
SEE_BOTH = ("compete", "nearest_patch", "dense_update", "dense_step_", "winner_step_")  # x and weight
ROWS = [(operator, *row) for operator, table in TABLES.items() for row in table]
ROWS += [row for operator in SEE_BOTH for row in geometry_rows(operator)]
ROWS += [row for operator in SEE_BOTH for row in weight_rows(operator)]
ROWS += geometry_rows("accumulate", "kernel")
ROWS += mask_rows("compete", "eligible") + mask_rows("nearest_patch", "eligible")
ROWS += [
    row
    for operator in ("accumulate", "dense_update", "apply_", "dense_step_", "winner_step_")
    for row in mask_rows(operator, "frozen")
]
ROWS += typed_rows("accumulate", "coefficients", "[2] or [64, 2]", "x")
ROWS += typed_rows("accumulate", "responses", "[64, 2]", "x")
ROWS += typed_rows("apply_", "sum", "[10, 20]", "weight") + typed_rows("apply_", "decay", "[10]", "weight")
ROWS += typed_rows("apply_", "denominator", "[10] or [1]", "weight")
LAYERS = {"linear": calls.LINEAR, "convolution": calls.CONVOLUTION}


def wrong_call(operator, kind, wrong, device):
    arguments = calls.call(operator, LAYERS[kind], device=device)
    changes = {key: value(arguments) if callable(value) else value for key, value in wrong.items()}
    return arguments | {key: moved(v, device) if isinstance(v, torch.Tensor) else v for key, v in changes.items()}


def moved(tensor, device):
    """On ``device`` behind the same strides, which ``to`` would not keep of a tensor that holds an entry twice."""
    if tensor.device.type == "meta" or tensor.device == torch.device(device):
        return tensor
    memory = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    return memory.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


VALUES = ("finite, got a NaN", "an overflow of", "must name", "stay finite")  # which nobody waits for on a GPU
VALUES_AND_STRIDES = (*VALUES, "each entry once")


def name(row):
    return f"{row[0]}: {row[3]}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_refused_with_a_sentence_and_nothing_written(backend, row):
    operator, kind, wrong, message = row
    arguments = wrong_call(operator, kind, wrong, backend.device)
    tensors = {key: v for key, v in arguments.items() if isinstance(v, torch.Tensor) and v.device.type != "meta"}
    before = {key: calls.raw(value) for key, value in tensors.items()}
    here, text = torch.empty(0, device=backend.device).device, f"hebbkern.{operator}: {message}"
    sentence = re.escape(re.sub(r"\b(on|device) cpu\b", rf"\1 {here}", text))
    if any(part in message for part in VALUES):
        refused = calls.refused(here, sentence, step=operator in calls.IN_PLACE)
    else:
        refused = pytest.raises(ValueError, match=sentence)
    with refused:
        getattr(hk.ops, operator)(**arguments)
    assert {key: calls.raw(value) for key, value in tensors.items()} == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("operator", SEE_BOTH)
def test_responses_that_overflow_are_refused(backend, operator, kind, dtype):
    huge = torch.finfo(getattr(torch, dtype)).max / 2
    arguments = calls.call(operator, LAYERS[kind], getattr(torch, dtype), backend.device) | {"patches": "raw"}
    arguments |= {name: torch.full_like(arguments[name], huge) for name in ("x", "weight")}
    before = arguments["weight"].clone()
    sentence = rf"hebbkern\.{operator}: x and weight must give finite responses, got an overflow of {dtype}"
    with calls.refused(backend.device, sentence, step=operator in calls.IN_PLACE):
        getattr(hk.ops, operator)(**arguments)
    assert calls.same_bits([arguments["weight"]], [before])


@pytest.mark.parametrize("row", [row for row in ROWS if "meta" not in row[3]], ids=name)
def test_fake_kernels_say_the_same(row):
    """On meta tensors, as torch.compile meets them: the same sentence about everything but values and strides."""
    operator, kind, wrong, message = row
    arguments = wrong_call(operator, kind, wrong, "cpu")
    on_meta = {key: v.to("meta") if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    if any(part in message for part in VALUES_AND_STRIDES):
        getattr(hk.ops, operator)(**on_meta)
    else:
        with pytest.raises(ValueError) as caught:
            getattr(hk.ops, operator)(**on_meta)
        assert f"hebbkern.{operator}: {message}".replace("on cpu", "on meta") in str(caught.value)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("operator", [*SEE_BOTH, "kwinners"])
def test_one_bad_number_anywhere_is_found(backend, operator, dtype):
    """Whatever the layout, wherever it is: vectors, tails, and what a stride jumps over."""
    layer = cases.Layer((3, 37), (5, 37))
    for layout in cases.LAYOUTS:
        for place in (0, 15, 36, 37, 110):
            for argument in ("y",) if operator == "kwinners" else ("x", "weight"):
                arguments = calls.call(operator, layer, dtype, backend.device)
                arguments[argument].view(-1)[place] = -INF if place % 2 else NAN
                arguments[argument] = cases.laid_out(arguments[argument], layout)
                step = operator in calls.IN_PLACE
                with calls.refused(backend.device, f"{argument} must be finite", step):
                    getattr(hk.ops, operator)(**arguments)


def test_numbers_outside_a_view_do_not_matter(backend):
    larger = torch.full((9, 50), NAN)
    larger[2:5, 3:40] = 1
    hk.ops.kwinners(larger[2:5, 3:40], 2)
    hk.ops.compete(larger[2:5, 3:40], larger[2:4, 3:40])
    hk.ops.apply_(larger[2:5, 3:40], torch.ones(3, 37), lr=1.0)
    assert (larger[2:5, 3:40] == 2).all() and larger.isnan().sum() == 9 * 50 - 3 * 37


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_images_are_checked_where_no_patch_looks(backend, stride):
    """A NaN that a stride steps over is refused like any other: what is accepted does not depend on the geometry."""
    x = torch.ones(1, 1, 8, 8)
    x[0, 0, 7, 7] = NAN
    with calls.refused(x.device, "x must be finite", step=False):
        hk.ops.compete(x, torch.ones(2, 1, 1, 1), stride=stride)
