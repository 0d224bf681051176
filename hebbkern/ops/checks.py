"""What the operators ask of their arguments: shapes, dtypes, devices and names here, values at the end.

The fake kernels run the first kind, eager.py both; the compiled kernels say the same sentences (csrc/checks.h).
Every failure is a ValueError that names the argument, what it must be and what came, before anything is written.
"""

import math

import torch

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PATCHES = ("raw", "centred", "standardised")
ACTIVATIONS = ("linear", "relu", "tanh", "softmax")
DECAYS = ("triangular", "diagonal", "activity", "none")
NORMALISATIONS = ("none", "row_max", "row_l2", "global_max")
MOST_WINNERS = 64
LARGEST_EXTENT = 2**31 - 1  # extents below it multiply without overflow
RESPONSES = "x and weight must give finite responses"
SUMS = "x and weight must give finite sums"


def result_dtype(dtype):
    """What sums are kept in: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fail(op, argument, want, got):
    raise ValueError(f"hebbkern.{op}: {argument} must {want}, got {got}")


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def shape_name(tensor):
    return f"shape {list(tensor.shape)}"


def full_name(tensor):
    return f"{dtype_name(tensor.dtype)} of {shape_name(tensor)}"


def is_finite(number):
    return -math.inf < number < math.inf


def rate(op, lr):
    if not is_finite(lr):
        fail(op, "lr", "be finite", f"{lr:g}")


def choice(op, argument, value, names):
    if value not in names:
        quoted = [f'"{name}"' for name in names]
        fail(op, argument, f"be {', '.join(quoted[:-1])} or {quoted[-1]}", f'"{value}"')


def floating(op, argument, tensor):
    if tensor.dtype not in FLOATS:
        fail(op, argument, "be float32, float64, bfloat16 or float16", dtype_name(tensor.dtype))


def inputs(op, x):
    if x.dim() not in (2, 4):
        fail(op, "x", "be [batch, inputs] or [batch, channels, height, width]", shape_name(x))
    floating(op, "x", x)
    if 0 in x.shape[1:2]:
        fail(op, "x", "have at least one input", shape_name(x))


def device(op, argument, tensor, owner, other):
    if tensor.device != other.device:
        fail(op, argument, f"be on {owner}'s device {other.device}", tensor.device)


def weights(op, x, weight):
    """x and weight belong together; ``inputs(op, x)`` holds."""
    if weight.dim() != x.dim():
        axes = "[neurons, inputs]" if x.dim() == 2 else "[neurons, channels, height, width]"
        fail(op, "weight", f"be {axes} like x's {x.dim()} dimensions", shape_name(weight))
    if weight.dtype != x.dtype:
        fail(op, "weight", f"have x's dtype {dtype_name(x.dtype)}", dtype_name(weight.dtype))
    device(op, "weight", weight, "x", x)
    if 0 in weight.shape:
        fail(op, "weight", "have at least one neuron and one input", shape_name(weight))
    if weight.shape[1] != x.shape[1]:
        kind = "inputs" if x.dim() == 2 else "channels"
        fail(op, "weight", f"have x's {x.shape[1]} {kind}", weight.shape[1])


def geometry(op, x, argument, kernel, patches, stride, padding, dilation):
    """Number of patches of x under a kernel that fits it: [] or [kh, kw], given by ``argument``."""
    choice(op, "patches", patches, PATCHES)
    for name, numbers, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(numbers) != 2 or min(numbers) < least:
            fail(op, name, f"be two numbers of at least {least}", list(numbers))
        if max(numbers) > LARGEST_EXTENT:
            fail(op, name, f"be two numbers of at most {LARGEST_EXTENT}", list(numbers))
    if x.dim() == 2:
        if (*stride, *padding, *dilation) != (1, 1, 0, 0, 1, 1):
            given = f"{list(stride)}, {list(padding)}, {list(dilation)}"
            fail(op, "stride, padding and dilation", "be 1, 0 and 1 for a linear layer", given)
        return x.shape[0]
    padded = [x.shape[2 + axis] + 2 * padding[axis] for axis in (0, 1)]
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    if span[0] > padded[0] or span[1] > padded[1]:
        want = f"fit into the padded image {padded[0]}x{padded[1]}"
        fail(op, argument, want, f"a kernel that spans {span[0]}x{span[1]}")
    rows, columns = ((padded[axis] - span[axis]) // stride[axis] + 1 for axis in (0, 1))
    return x.shape[0] * rows * columns


def layer(op, x, weight, patches, stride, padding, dilation):
    """Everything that compete, nearest_patch and dense_update share; the number of patches."""
    inputs(op, x)
    weights(op, x, weight)
    return geometry(op, x, "weight", weight.shape[2:], patches, stride, padding, dilation)


def neuron_mask(op, argument, mask, neurons, like):
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.dim() != 1 or mask.shape[0] != neurons or mask.device != like.device:
        want = f"be bool of shape [{neurons}] on {like.device}"
        fail(op, argument, want, f"{full_name(mask)} on {mask.device}")


def typed(op, argument, tensor, dtype, shapes, owner, like):
    """An optional tensor of exactly this dtype, one of these shapes and ``like``'s device."""
    if tensor is None:
        return
    if tensor.dtype != dtype or all(list(tensor.shape) != list(shape) for shape in shapes):
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        fail(op, argument, f"be {dtype_name(dtype)} of shape {wanted}", full_name(tensor))
    device(op, argument, tensor, owner, like)


def finite(op, **tensors):
    """Values: no NaN, no infinity. Reads the tensors, hence never called by a fake kernel."""
    for argument, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            fail(op, argument, "be finite", "a NaN or an infinity")


def none_skipped(number, device):
    """How many steps were skipped on ``device``, where kernels count those whose numbers are not finite."""
    if number:
        steps = "1 step was" if number == 1 else f"{number} steps were"
        raise RuntimeError(
            f"hebbkern: {steps} skipped on {device}, the weights left as before: a NaN or an infinity was in the "
            "inputs, or a weight would have overflowed"
        )


def no_overflow(op, sentence, *results):
    """Values: what was computed of finite numbers is finite."""
    for result in results:
        if not result.isfinite().all():
            raise ValueError(f"hebbkern.{op}: {sentence}, got an overflow of {dtype_name(result.dtype)}")


def finite_norms(op, norms):
    """Values: patches can be divided by their norms."""
    if not (norms.isfinite() & (1 / norms).isfinite()).all():
        got = f"one beyond {dtype_name(norms.dtype)}"
        fail(op, "x", "have patches whose norm and its inverse are finite", got)


def named_range(op, argument, named, neurons):
    """Values: every entry names a neuron, or nobody by -1."""
    outside = named[(named < -1) | (named >= neurons)]
    if outside.numel():
        fail(op, argument, f"name neurons 0 to {neurons - 1}, or -1 for nobody", int(outside[0]))
