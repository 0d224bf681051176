"""The learning rules: small frozen dataclasses that compose compete → accumulate → apply_, or sanger → apply_.

    rule = hk.KrotovHopfield(p=2.0, k=2, delta=0.4)
    rule.step_(weight, x, lr=0.02)                                     # one local update, in place
    rule.apply_(weight, rule.update(weight, a) + rule.update(weight, b), lr=0.02)     # the same in parts

A rule only says who is taught by each patch and how the sums become a step. Shapes, everywhere: weight [K, N] with
x [B, N], or weight [K, C, kh, kw] with x [B, C, H, W]; a linear layer sees one patch a sample, a convolution B·Ho·Wo.
Every rule is deterministic: the same inputs give the same bits, with the compiled kernels on any number of CPU threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hebbkern import ops
from hebbkern.coefficients import constant
from hebbkern.ops.checks import PATCHES, result_dtype
from hebbkern.ops.checks import layer as check_layer
from hebbkern.ops.dense_step import rounded_dense_step_
from hebbkern.ops.library import pair
from hebbkern.settings import Settings
from hebbkern.update import Update

_PARTS = ("update", "_update", "apply_")  # of a step


@dataclass(frozen=True)
class Rule(Settings):
    """What every rule shares. `patches`: "raw", "centred" (each less its mean) or "standardised" (and of norm 1)."""

    patches: str = field(default="raw", kw_only=True)

    def __post_init__(self):
        self._one_of("patches", PATCHES)

    def update(
        self,
        weight: Tensor,
        x: Tensor,
        *,
        labels: Tensor | None = None,
        frozen: Tensor | None = None,
        stride=1,
        padding=0,
        dilation=1,
    ) -> Update:
        """What the batch x teaches; nothing is written.

        Args:
            weight: [K, N] or [K, C, kh, kw]; float32, float64, bfloat16 or float16.
            x: [B, N] or [B, C, H, W], dtype and device of weight. An empty batch teaches nothing.
            labels: [B] integers, used by Supervised only.
            frozen: bool [K], True = this neuron competes but never learns.
            stride, padding, dilation: of the convolution, a number or a pair.

        Raises:
            ValueError or RuntimeError, naming the argument, for a wrong shape, dtype, device or a non-finite input.
        """
        geometry = {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation)}
        geometry["patches"] = self.patches
        return self._update(weight, x, labels, frozen, geometry)

    def _update(self, weight, x, labels, frozen, geometry) -> Update:
        raise NotImplementedError

    def apply_(self, weight: Tensor, update: Update, *, lr: float, frozen: Tensor | None = None) -> None:
        """Moves weight in place by lr times the averaged update. On any error weight stays as it was, bit for bit.

        Rows with frozen = True stay bit-identical. Raises ValueError or RuntimeError for a wrong shape or a NaN.
        """
        ops.apply_(weight, update.sum, decay=update.decay, denominator=update.denominator, lr=lr, frozen=frozen)

    def step_(
        self,
        weight: Tensor,
        x: Tensor,
        *,
        lr: float,
        labels: Tensor | None = None,
        frozen: Tensor | None = None,
        stride=1,
        padding=0,
        dilation=1,
        dtype: torch.dtype | None = None,
    ) -> None:
        """One learning step in place: `apply_` of `update`, bit for bit. Arguments and errors as there.
        With a dtype the update is that of weight and x rounded to it, and applied to weight as it is.
        """
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        x = x.to(dtype) if dtype is not None and x.is_floating_point() else x
        step = self._in_one if dtype is None else self._in_one and self._in_one_rounded
        options = {"frozen": frozen, "patches": self.patches, **geometry}
        if step and not isinstance(lr, Tensor) and step(weight, x, labels, lr=lr, **options) is not False:
            return
        near = weight if dtype is None else weight.to(dtype)
        update = self.update(near, x, labels=labels, frozen=frozen, **geometry)
        self.apply_(weight, update.to(result_dtype(weight.dtype)), lr=lr, frozen=frozen)

    _in_one = None  # a method that takes update and apply_ in one operator, in rules that have such
    _in_one_rounded = None  # the same of weight by what it is in x's dtype; False where it did not

    def __init_subclass__(cls, **settings):
        """A class that changes a part of the step takes it in parts, unless it says anew how they go in one."""
        super().__init_subclass__(**settings)
        order = {name: [name in vars(base) for base in cls.__mro__].index(True) for name in (*_PARTS, "_in_one")}
        if any(order[part] < order["_in_one"] for part in _PARTS):
            cls._in_one = None


@dataclass(frozen=True)
class KrotovHopfield(Rule):
    """Krotov and Hopfield's competition: the winner learns the patch, the neuron of rank k unlearns it.

    Δw_j = Σ_b g_jb x_b − (Σ_b g_jb s_jb) w_j, with s_j = Σ_i sign(w_ji)|w_ji|^(p−1) x_i, g = +1 for the highest s,
    −delta for the k-th highest, 0 else; Δ is then divided by its largest absolute entry (over all neurons that are not
    frozen), so lr is the largest change of any weight. Draw weights from N(0, 1) and let lr fall linearly to 0.

    Krotov and Hopfield, Unsupervised learning by competing hidden units, PNAS 2019, equations 3, 9 and 10, in the
    minibatch form of the authors' notebook; PyTorch-Hebbian uses it for convolutions.

    Args:
        p: Lebesgue norm that each neuron's weights tend to (length 1), finite and at least 1.
        k: rank that unlearns, 2 to 64 (and at most the number of neurons).
        delta: strength of the unlearning.
        patches: see `Rule`; on images take "centred", raw patches collapse to one filter.
    """

    p: float = 2.0
    k: int = 2
    delta: float = 0.4

    def __post_init__(self):
        super().__post_init__()
        self._number("p", " of at least 1", lambda p: p >= 1)
        self._whole("k", 2)
        self._number("delta", "", lambda delta: True)

    def _update(self, weight, x, labels, frozen, geometry) -> Update:
        winners, responses = ops.compete(x, weight, self.k, p=self.p, **geometry)
        coefficients = constant(self._coefficients(), responses)
        total, decay, _ = ops.accumulate(
            x,
            winners,
            coefficients,
            neurons=weight.shape[0],
            kernel=weight.shape[2:],
            responses=responses,
            frozen=frozen,
            **geometry,
        )
        return Update(total, decay)

    def apply_(self, weight, update, *, lr, frozen=None) -> None:
        ops.apply_(weight, update.sum, decay=update.decay, lr=lr, normalise="global_max", frozen=frozen)

    def _in_one(self, weight, x, labels, **options) -> None:
        how = {"p": self.p, "decay_by_response": True, "normalise": "global_max"}
        ops.winner_step_(weight, x, k=self.k, coefficients=self._coefficients(), **how, **options)

    def _coefficients(self) -> tuple[float, ...]:
        return (1.0,) + (0.0,) * (self.k - 2) + (-float(self.delta),)


@dataclass(frozen=True)
class WTA(Rule):
    """Winner takes all: the k neurons most similar to a patch move towards it.

    Δw_j = Σ r (x − w_j) / Σ r over the patches that neuron j won; a neuron that won nothing does not move. k = 1 with
    cosine similarity is HWTA: Comparing the Performance of Hebbian against Backpropagation Learning Using CNNs,
    equation 3 and section 3.1 (its similarity ((1 + cos)/2)² has the same winner). With similarity="dot" and
    normalise="row_max" it is the update of HebbCL, equations 2 and 3.

    Args:
        k: how many winners each patch teaches, 1 to 64 (and at most the number of neurons).
        similarity: "cosine" or "dot".
        coefficient: "one" (r = 1) or "response" (r = the similarity where positive, else 0).
        average: divide by Σ r, per neuron; False sums.
        normalise: "none", or divide each row that moved by its largest absolute weight ("row_max") or norm ("row_l2").
        patches: see `Rule`.
    """

    k: int = 1
    similarity: str = "cosine"
    coefficient: str = "one"
    average: bool = True
    normalise: str = "none"

    def __post_init__(self):
        super().__post_init__()
        self._whole("k", 1)
        self._one_of("similarity", ("cosine", "dot"))
        self._one_of("coefficient", ("one", "response"))
        self._boolean("average")
        self._one_of("normalise", ("none", "row_max", "row_l2"))

    def _update(self, weight, x, labels, frozen, geometry) -> Update:
        winners, responses = ops.compete(x, weight, self.k, cosine=self.similarity == "cosine", **geometry)
        one = self.coefficient == "one"
        total, decay, _ = ops.accumulate(
            x,
            winners,
            constant((1.0,) * self.k, responses) if one else responses.clamp(min=0),
            neurons=weight.shape[0],
            kernel=weight.shape[2:],
            frozen=frozen,
            **geometry,
        )
        return Update(total, decay, decay if self.average else None)

    def apply_(self, weight, update, *, lr, frozen=None) -> None:
        ops.apply_(
            weight,
            update.sum,
            decay=update.decay,
            denominator=update.denominator,
            lr=lr,
            normalise=self.normalise,
            frozen=frozen,
        )

    def _in_one(self, weight, x, labels, **options) -> None:
        ops.winner_step_(
            weight,
            x,
            k=self.k,
            cosine=self.similarity == "cosine",
            coefficients=(1.0,) * self.k,
            by_response=self.coefficient == "response",
            average=self.average,
            normalise=self.normalise,
            **options,
        )


@dataclass(frozen=True)
class Supervised(Rule):
    """The label teaches: the neuron of a patch's class moves towards it, to the centroid of the class.

    Δw_j = Σ (x − w_j) / count over the patches of class j. Supervised Hebbian classifier (SHC): Comparing the
    Performance of Hebbian against Backpropagation Learning Using CNNs, equation 8; also the trace of Differentiable
    Hebbian Consolidation, with its η for lr.

    `update` and `step_` need labels, int64 or int32 [B]: sample b teaches neuron labels[b], −1 teaches nobody. In a
    convolution every patch of an image is taught by the image's label.

    Args:
        average: divide by the number of patches of the class; False sums.
        patches: see `Rule`.
    """

    average: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._boolean("average")

    def _update(self, weight, x, labels, frozen, geometry) -> Update:
        patches = check_layer("Supervised", x, weight, **geometry)
        self._check_labels(x, labels)
        kernel = weight.shape[2:]
        if kernel:
            labels = labels.repeat_interleave(patches // max(x.shape[0], 1))
        total, decay, _ = ops.accumulate(
            x,
            labels[:, None],
            constant((1.0,), weight),
            neurons=weight.shape[0],
            kernel=kernel,
            frozen=frozen,
            **geometry,
        )
        return Update(total, decay, decay if self.average else None)

    def _in_one(self, weight, x, labels, **options) -> None:
        self._check_labels(x, labels)
        ops.winner_step_(weight, x, labels=labels, average=self.average, **options)

    def _check_labels(self, x: Tensor, labels: Tensor | None):
        wanted = f"int64 or int32 of shape [{x.shape[0] if x.dim() else 0}], the class of each sample"
        if not isinstance(labels, Tensor):
            self._refuse("labels", wanted, type(labels).__name__ if labels is not None else None)
        if labels.dtype not in (torch.int64, torch.int32) or labels.shape != x.shape[:1]:
            dtype = str(labels.dtype).removeprefix("torch.")
            self._refuse("labels", wanted, f"{dtype} of shape {list(labels.shape)}")


@dataclass(frozen=True)
class _Dense(Rule):
    """A rule that teaches every neuron by its own activity y = f(w·x), averaged over the patches."""

    activation: str = "linear"

    def __post_init__(self):
        super().__post_init__()
        self._one_of("activation", ("linear", "relu", "tanh"))

    def _update(self, weight, x, labels, frozen, geometry) -> Update:
        total, count = ops.dense_update(
            x,
            weight,
            activation=self.activation,
            decay=self._decay,
            frozen=frozen,
            **geometry,
        )
        return Update(total, None, count)

    def _in_one(self, weight, x, labels, **options) -> None:
        ops.dense_step_(weight, x, activation=self.activation, decay=self._decay, **options)

    def _in_one_rounded(self, weight, x, labels, **options) -> bool:
        return rounded_dense_step_(weight, x, activation=self.activation, decay=self._decay, **options)


@dataclass(frozen=True)
class Sanger(_Dense):
    """Hebbian PCA: each neuron learns what the neurons before it have not explained.

    Δw_j = Σ f(y_j) (x − Σ_{i ≤ j} f(y_i) w_i) / patches, y = w·x. HPCA: Comparing the Performance of Hebbian against
    Backpropagation Learning Using CNNs, equation 7; with activation="linear" Sanger's rule, equation 5.

    Args:
        activation: f, one of "relu" (the paper's), "linear", "tanh".
        patches: see `Rule`.
    """

    activation: str = "relu"
    _decay = "triangular"


@dataclass(frozen=True)
class Oja(_Dense):
    """Oja's rule: Δw_j = Σ y_j (x − y_j w_j) / patches, y = f(w·x); each neuron finds the first component.

    Oja, A simplified neuron model as a principal component analyzer, J. Math. Biology 1982, equation 3.

    Args:
        activation: f, one of "linear", "relu", "tanh".
        patches: see `Rule`.
    """

    _decay = "diagonal"


@dataclass(frozen=True)
class Hebb(_Dense):
    """The plain Hebbian rule: Δw_j = Σ y_j x / patches, y = f(w·x); weights grow without bound.

    Comparing the Performance of Hebbian against Backpropagation Learning Using CNNs, equation 2.

    Args:
        activation: f, one of "linear", "relu", "tanh".
        patches: see `Rule`.
    """

    _decay = "none"


@dataclass(frozen=True)
class SoftWTA(Rule):
    """Soft winner takes all: every neuron learns by its share of a softmax, all but the winner against the patch.

    Δw_j = Σ r_j (x − u_j w_j) / patches, u = w·x, r = softmax(u / temperature) over the neurons, with its sign flipped
    for all but the winner; the rate of each neuron is lr · |‖w_j‖₂ − 1|^rate_power, so that it stops at length 1.

    Journé, Rodriguez, Guo and Moraitis, Hebbian deep learning without feedback (SoftHebb), ICLR 2023, section 3; the
    authors' released networks learn with normalise="global_max".

    Args:
        temperature: of the softmax, above 0; low = close to hard winner takes all.
        rate_power: of the distance to length 1, at least 0; 0 = the same rate for all.
        normalise: "none", or divide Δ by its largest absolute entry over all neurons that are not frozen
            ("global_max"), before each neuron's rate: a step is then as long with one patch as with many.
        patches: see `Rule`.
    """

    temperature: float = 1.0
    rate_power: float = 0.5
    normalise: str = "none"

    def __post_init__(self):
        super().__post_init__()
        self._number("temperature", " above 0", lambda temperature: temperature > 0)
        self._number("rate_power", " of at least 0", lambda power: power >= 0)
        self._one_of("normalise", ("none", "global_max"))

    def _update(self, weight, x, labels, frozen, geometry) -> Update:
        total, count = ops.dense_update(
            x,
            weight,
            activation="softmax",
            decay="diagonal",
            temperature=self.temperature,
            frozen=frozen,
            **geometry,
        )
        return Update(total, None, count)

    def apply_(self, weight, update, *, lr, frozen=None) -> None:
        how = {"normalise": self.normalise, "rate_power": self.rate_power, "frozen": frozen}
        ops.apply_(weight, update.sum, denominator=update.denominator, lr=lr, **how)
