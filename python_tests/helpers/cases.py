"""Layers to test on: shapes, layouts, dtypes, and the same drawn by hypothesis."""

import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PATCHES = ["raw", "centred", "standardised"]
LAYOUTS = ["contiguous", "sliced", "transposed", "channels_last", "offset"]


@dataclass(frozen=True)
class Layer:
    """Shapes of x and weight, and the geometry that joins them."""

    x: tuple
    weight: tuple
    geometry: dict = field(default_factory=dict)

    def __str__(self):
        options = "".join(f" {name}={value}" for name, value in self.geometry.items())
        return f"{'x'.join(map(str, self.x))}-{'x'.join(map(str, self.weight))}{options}".replace(" ", "_")

    @property
    def neurons(self):
        return self.weight[0]

    @property
    def kernel(self):
        return self.weight[2:]


LINEAR = [
    Layer((1, 1), (1, 1)),
    Layer((1, 63), (100, 63)),
    Layer((100, 257), (63, 257)),
    Layer((63, 100), (257, 100)),
    Layer((257, 7), (64, 7)),
]
CONVOLUTION = [
    Layer((1, 1, 6, 7), (1, 1, 1, 1)),
    Layer((2, 3, 9, 8), (7, 3, 3, 3)),
    Layer((2, 3, 12, 11), (63, 3, 5, 5), {"padding": 2}),
    Layer((3, 2, 10, 13), (100, 2, 3, 2), {"stride": (2, 3), "padding": (0, 1)}),
    Layer((1, 5, 11, 9), (6, 5, 3, 3), {"stride": 2, "padding": (1, 2), "dilation": (2, 1)}),
    Layer((2, 4, 5, 5), (257, 4, 5, 5)),
    Layer((1, 3, 4, 4), (8, 3, 7, 7), {"padding": 3}),
    Layer((2, 63, 4, 4), (33, 63, 3, 3), {"padding": 1}),
]
LAYERS = LINEAR + CONVOLUTION
LARGE = [  # beyond the pieces that work is cut into
    Layer((2100, 70), (300, 70)),
    Layer((40, 2500), (1200, 2500)),
    Layer((8, 3, 32, 32), (96, 3, 5, 5), {"padding": 2}),
]
FEW = [LINEAR[2], LINEAR[3], CONVOLUTION[2], CONVOLUTION[4]]


def products(layer):
    """How many numbers a layer multiplies, at stride 1; 0 for None."""
    return 0 if layer is None else layer.x[0] * math.prod(layer.x[2:]) * math.prod(layer.weight)


def here(device=None):
    """``device``, or that on which torch makes tensors now: that of the ``backend`` of a test."""
    return torch.empty(0).device if device is None else device


def generator(seed):
    """Of the same numbers whatever device they go to."""
    return {"generator": torch.Generator("cpu").manual_seed(seed), "device": "cpu"}


def random(shape, dtype=torch.float32, device=None, seed=0, offset=0.0, scale=1.0):
    """Normal numbers around ``offset``, rounded to dtype, the same on every device."""
    numbers = torch.randn(shape, **generator(seed), dtype=torch.float64)
    return (numbers * scale + offset).to(dtype).to(here(device))


def integers(shape, low, high, dtype=torch.float32, device=None, seed=0):
    """Small whole numbers, low to high: every sum of their products is exact, so equal responses are true ties."""
    return torch.randint(low, high + 1, shape, **generator(seed)).to(dtype).to(here(device))


def tensors(layer, dtype, device=None, seed=0, offset=0.3):
    """x and weight of a layer; x has a mean, as images have."""
    x = random(layer.x, dtype, device, seed, offset)
    return x, random(layer.weight, dtype, device, seed + 1, scale=0.5)


def laid_out(tensor, layout):
    """The same values behind other strides."""
    if layout == "sliced":
        return torch.stack([tensor, tensor + 1], dim=-1)[..., 0]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "offset":
        larger = tensor.new_zeros([size + 3 for size in tensor.shape])
        inner = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
        return inner.copy_(tensor)
    return tensor


def some(neurons, device=None, seed=0, share=0.5):
    """A bool mask of about this share of True."""
    return torch.rand(neurons, **generator(seed)).lt(share).to(here(device))


@st.composite
def linear_layers(draw):
    inputs = draw(st.integers(1, 70))
    return Layer((draw(st.integers(0, 40)), inputs), (draw(st.integers(1, 70)), inputs))


@st.composite
def convolutions(draw):
    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding, dilation = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 2)
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    image = [max(1, span[axis] - 2 * padding[axis]) + draw(st.integers(0, 5)) for axis in (0, 1)]
    channels, neurons = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    return Layer((draw(st.integers(0, 3)), channels, *image), (neurons, channels, *kernel), geometry)


@st.composite
def drawn(draw):
    """A layer with everything that every operator shares: (layer, x, weight, geometry with patches)."""
    layer = draw(st.one_of(linear_layers(), convolutions()))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**20))
    x, weight = tensors(layer, dtype, seed=seed, offset=draw(st.sampled_from([0.0, 0.3, 1.0])))
    x, weight = (laid_out(tensor, draw(st.sampled_from(LAYOUTS))) for tensor in (x, weight))
    return layer, x, weight, {"patches": draw(st.sampled_from(PATCHES)), **layer.geometry}
