"""The learning rules: frozen dataclasses, each of which states as data what it computes.

    rule = hk.KrotovHopfield(p=2.0, k=2, delta=0.4)
    rule.step_(weight, x, lr=0.02)                                                     # one local update, in place
    rule.apply_(weight, rule.update(weight, a) + rule.update(weight, b), lr=0.02)      # the same in parts

A rule is a set of settings and its ``specification``: a WinnerSpecification (compete, accumulate, apply_) or a
DenseSpecification (dense_update, apply_). ``Rule`` executes either. A rule with a ``cli_name`` appears in the command
line and in the benchmark by itself. Shapes, everywhere: weight [K, N] with x [B, N], or weight [K, C / groups, kh, kw]
with x [B, C, H, W]; a linear layer sees one patch a sample, a convolution B·Ho·Wo patches for each group of neurons.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hebbkern import checks, ops
from hebbkern.checks import Settings
from hebbkern.ops.dense_step import rounded_dense_step_
from hebbkern.ops.library import Pair, bump_version, call, pair, whole
from hebbkern.specifications import DenseSpecification, WinnerSpecification, constant, targets_of_labels
from hebbkern.update import Update

RULES: dict[str, type[Rule]] = {}  # cli_name -> rule, in the order of this file


@dataclass(frozen=True)
class Rule(Settings):
    """Base of the rules: executes the specification that a subclass states.

    A blank patch (all zeros, or constant where patches are centred or standardised) teaches no neuron: where winners
    learn it has none, with labels it does not count, and to the sum of a dense rule it adds nothing.

    Deterministic: the same inputs give the same bits, with the compiled kernels on any number of CPU threads. A
    subclass may override ``update`` or ``apply_``; then ``step_`` calls these two instead of the fused operator.

    Args:
        patches: "raw", "centred" (each patch less its mean; a constant patch becomes zeros) or "standardised" (and
            divided by its norm).

    Class attributes:
        cli_name: the name in the command line and the benchmark; a class that sets none is not listed.
        default_lr: the learning rate that `hebbkern train` starts from.
        uses_labels: whether `update` and `step_` need labels, which name the neuron to teach.
    """

    patches: str = field(default="raw", kw_only=True)

    cli_name: ClassVar[str]
    _specification: ClassVar[WinnerSpecification | DenseSpecification | None]  # of each instance, as is the next
    _fused: ClassVar[WinnerSpecification | DenseSpecification | None]  # None where a step is taken in parts
    default_lr: ClassVar[float] = 0.004
    uses_labels: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "cli_name" in vars(cls):
            RULES[cls.cli_name] = cls

    def __post_init__(self) -> None:
        self._one_of("patches", checks.PATCHES)
        self.check()
        specification = self.specification()
        in_parts = type(self).update is not Rule.update or type(self).apply_ is not Rule.apply_
        fused = isinstance(specification, WinnerSpecification) or (specification is not None and specification.fused)
        object.__setattr__(self, "_specification", specification)
        object.__setattr__(self, "_fused", specification if fused and not in_parts else None)

    def check(self) -> None:
        """Raise ValueError for a setting that does not fit; may normalise settings. Called by the constructor."""

    def specification(self) -> WinnerSpecification | DenseSpecification | None:
        """What the rule computes; None for a rule that overrides ``update``."""
        return None

    def update(
        self,
        weight: Tensor,
        x: Tensor,
        *,
        labels: Tensor | None = None,
        frozen: Tensor | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> Update:
        """Compute the update that the batch x teaches; nothing is written.

        Args:
            weight: [K, N] or [K, C / groups, kh, kw]; float32, float64, bfloat16 or float16.
            x: [B, N] or [B, C, H, W], dtype and device of weight. An empty batch teaches nothing.
            labels: [B] integers, used by Supervised only.
            frozen: bool [K], True = the neuron competes but never learns.
            stride, padding, dilation: of the convolution, a number or a pair.
            groups: of the convolution: the K / groups neurons of a group compete among themselves, or are ordered
                among themselves, for patches of their C / groups channels.

        Raises:
            ValueError: a shape, dtype or device does not fit, or a number is not finite.
        """
        rule = self._specification
        geometry = {
            "patches": self.patches,
            "stride": pair(stride),
            "padding": pair(padding),
            "dilation": pair(dilation),
            "groups": whole(groups),
        }
        if isinstance(rule, DenseSpecification):
            settings = {"activation": rule.activation, "decay": rule.decay, "temperature": rule.temperature}
            total, count = ops.dense_update(x, weight, **settings, frozen=frozen, **geometry)
            return Update(total, None, count)
        if rule is None:
            raise NotImplementedError(f"hebbkern.{type(self).__name__} must define specification() or update()")
        if self.uses_labels:
            targets, responses = self._targets(weight, x, labels, geometry), None
        else:
            targets, responses = ops.compete(x, weight, rule.k, p=rule.p, cosine=rule.cosine, **geometry)
        coefficients = constant(rule.coefficients, weight)
        if responses is not None and rule.by_response:
            coefficients = responses.clamp(min=0) * coefficients
        total, decay, _ = ops.accumulate(
            x,
            targets,
            coefficients,
            neurons=weight.shape[0],
            kernel=weight.shape[2:],
            responses=responses if rule.decay_by_response else None,
            frozen=frozen,
            **geometry,
        )
        return Update(total, decay, decay if rule.average else None)

    def apply_(self, weight: Tensor, update: Update, *, lr: float | Tensor, frozen: Tensor | None = None) -> None:
        """Move weight in place by lr times the averaged update.

        Args:
            weight: [K, N] or [K, C / groups, kh, kw], the weight that `update` was computed for.
            update: an update, or a sum of updates, of this rule.
            lr: learning rate, finite; a number, or a CPU tensor of one (see `hebbkern.ops.apply_`).
            frozen: bool [K], True = the row keeps its bits.

        Raises:
            ValueError: a shape does not fit or a number is not finite; weight is as before, bit for bit.
        """
        rule = self._specification
        settings: dict[str, Any] = {"normalise": rule.normalise} if rule is not None else {}
        if isinstance(rule, DenseSpecification):
            settings["rate_power"] = rule.rate_power
        settings |= {"decay": update.decay, "denominator": update.denominator}
        ops.apply_(weight, update.sum, lr=lr, frozen=frozen, **settings)

    def step_(
        self,
        weight: Tensor,
        x: Tensor,
        *,
        lr: float | Tensor,
        labels: Tensor | None = None,
        frozen: Tensor | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take one learning step in place: `apply_` of `update`, bit for bit, in one operator where there is one.

        Args:
            weight, x, labels, frozen, stride, padding, dilation, groups: as for `update`. weight is written.
            lr: learning rate, finite; a number, or a CPU tensor of one, with which the step is taken in parts.
            dtype: None, or the dtype that weight and x are rounded to for the update; it is applied to weight as it is.

        Raises:
            ValueError: as for `update` and `apply_`; weight is as before, bit for bit.
        """
        rule = self._fused
        if dtype is not None:
            self._check_tensors(weight, x)
            x = x.to(dtype) if x.is_floating_point() else x
        if rule is None or isinstance(lr, Tensor) or (dtype is not None and dtype != weight.dtype):
            geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            self._step_in_parts_(weight, x, lr, labels, frozen, geometry, dtype)
            return
        where = self.patches, pair(stride), pair(padding), pair(dilation), whole(groups), frozen
        if isinstance(rule, DenseSpecification):
            call("dense_step_", weight, x, rule.activation, rule.decay, lr, *where)
        else:
            if self.uses_labels:
                self._check_tensors(weight, x)
                self.check_labels(x, labels)
            labels = labels if self.uses_labels else None
            call("winner_step_", weight, x, labels, *rule, lr, *where)
        bump_version(weight)

    def _step_in_parts_(
        self,
        weight: Tensor,
        x: Tensor,
        lr: float | Tensor,
        labels: Tensor | None,
        frozen: Tensor | None,
        geometry: dict[str, Any],
        dtype: torch.dtype | None,
    ) -> None:
        rule = self._fused
        if isinstance(rule, DenseSpecification) and not isinstance(lr, Tensor):
            settings = {"activation": rule.activation, "decay": rule.decay, "patches": self.patches}
            rounded_dense_step_(weight, x, lr=lr, **settings, frozen=frozen, **geometry)
            return
        rounded = weight if dtype is None else weight.to(dtype)
        update = self.update(rounded, x, labels=labels, frozen=frozen, **geometry)
        self.apply_(weight, update.to(checks.result_dtype(weight.dtype)), lr=lr, frozen=frozen)

    def _targets(self, weight: Tensor, x: Tensor, labels: Tensor | None, geometry: dict) -> Tensor:
        """[P, 1]: the neuron of each patch, that of its sample's label."""
        self._check_tensors(weight, x)
        patches, groups = checks.layer(type(self).__name__, x, weight, **geometry), geometry["groups"]
        self.check_labels(x, labels)
        assert labels is not None
        if weight.dim() == 4:
            labels = labels.repeat_interleave(patches // groups // max(x.shape[0], 1))
        return targets_of_labels(labels, groups, len(weight)).reshape(-1, 1) if groups > 1 else labels[:, None]

    def _check_tensors(self, weight: Tensor, x: Tensor) -> None:
        """Where more than an operator, which does so itself, needs tensors."""
        checks.check_tensor(type(self).__name__, "weight", weight)
        checks.check_tensor(type(self).__name__, "x", x)

    def check_labels(self, x: Tensor, labels: Tensor | None) -> None:
        """Raises ValueError unless labels are integers, one for each sample of x."""
        wanted = f"int64 or int32 of shape [{x.shape[0] if x.dim() else 0}], the class of each sample"
        if not isinstance(labels, Tensor):
            self._refuse("labels", wanted, type(labels).__name__ if labels is not None else None)
        if labels.dtype not in (torch.int64, torch.int32) or labels.shape != x.shape[:1]:
            self._refuse("labels", wanted, checks.full_name(labels))


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

    cli_name = "krotov"
    default_lr = 0.04

    p: float = 2.0
    k: int = 2
    delta: float = 0.4

    def check(self) -> None:
        self._number("p", " of at least 1", lambda p: p >= 1)
        self._whole("k", 2)
        self._number("delta", "", lambda delta: True)

    def specification(self) -> WinnerSpecification:
        coefficients = (1.0,) + (0.0,) * (self.k - 2) + (-float(self.delta),)
        how = {"decay_by_response": True, "normalise": "global_max"}
        return WinnerSpecification(k=self.k, p=self.p, coefficients=coefficients, **how)


@dataclass(frozen=True)
class WTA(Rule):
    """Winner takes all: the k neurons most similar to a patch move towards it.

    Δw_j = Σ r (x − w_j) / Σ r over the patches that neuron j won; a neuron that won nothing does not move. No neuron
    wins a blank patch, as at the rim of a digit, which would draw it towards zero. k = 1 with
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

    cli_name = "wta"
    default_lr = 0.04

    k: int = 1
    similarity: str = "cosine"
    coefficient: str = "one"
    average: bool = True
    normalise: str = "none"

    def check(self) -> None:
        self._whole("k", 1)
        self._one_of("similarity", ("cosine", "dot"))
        self._one_of("coefficient", ("one", "response"))
        self._boolean("average")
        self._one_of("normalise", ("none", "row_max", "row_l2"))

    def specification(self) -> WinnerSpecification:
        return WinnerSpecification(
            k=self.k,
            cosine=self.similarity == "cosine",
            coefficients=(1.0,) * self.k,
            by_response=self.coefficient == "response",
            average=self.average,
            normalise=self.normalise,
        )


@dataclass(frozen=True)
class Sanger(Rule):
    """Hebbian PCA: each neuron learns what the neurons before it have not explained.

    Δw_j = Σ f(y_j) (x − Σ_{i ≤ j} f(y_i) w_i) / patches, y = w·x. HPCA: Comparing the Performance of Hebbian against
    Backpropagation Learning Using CNNs, equation 7; with activation="linear" Sanger's rule, equation 5.

    Args:
        activation: f, one of "relu" (the paper's), "linear", "tanh".
        patches: see `Rule`.
    """

    cli_name = "sanger"

    activation: str = "relu"

    def check(self) -> None:
        self._one_of("activation", ("linear", "relu", "tanh"))

    def specification(self) -> DenseSpecification:
        return DenseSpecification(self.activation, "triangular")


@dataclass(frozen=True)
class Oja(Rule):
    """Oja's rule: Δw_j = Σ y_j (x − y_j w_j) / patches, y = f(w·x); each neuron finds the first component.

    Oja, A simplified neuron model as a principal component analyzer, J. Math. Biology 1982, equation 3.

    Args:
        activation: f, one of "linear", "relu", "tanh".
        patches: see `Rule`.
    """

    cli_name = "oja"

    activation: str = "linear"

    def check(self) -> None:
        self._one_of("activation", ("linear", "relu", "tanh"))

    def specification(self) -> DenseSpecification:
        return DenseSpecification(self.activation, "diagonal")


@dataclass(frozen=True)
class Hebb(Rule):
    """The plain Hebbian rule: Δw_j = Σ y_j x / patches, y = f(w·x); weights grow without bound.

    Comparing the Performance of Hebbian against Backpropagation Learning Using CNNs, equation 2.

    Args:
        activation: f, one of "linear", "relu", "tanh".
        patches: see `Rule`.
    """

    cli_name = "hebb"
    default_lr = 0.0001

    activation: str = "linear"

    def check(self) -> None:
        self._one_of("activation", ("linear", "relu", "tanh"))

    def specification(self) -> DenseSpecification:
        return DenseSpecification(self.activation, "none")


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

    cli_name = "softwta"

    temperature: float = 1.0
    rate_power: float = 0.5
    normalise: str = "none"

    def check(self) -> None:
        self._number("temperature", " above 0", lambda temperature: temperature > 0)
        self._number("rate_power", " of at least 0", lambda power: power >= 0)
        self._one_of("normalise", ("none", "global_max"))

    def specification(self) -> DenseSpecification:
        return DenseSpecification("softmax", "diagonal", self.temperature, self.normalise, self.rate_power)


@dataclass(frozen=True)
class Supervised(Rule):
    """The label teaches: the neuron of a patch's class moves towards it, to the centroid of the class.

    Δw_j = Σ (x − w_j) / count over the patches of class j that are not blank. Supervised Hebbian classifier (SHC):
    Comparing the Performance of Hebbian against Backpropagation Learning Using CNNs, equation 8; also the trace of
    Differentiable Hebbian Consolidation, with its η for lr, but for blank samples, which the trace counts.

    `update` and `step_` need labels, int64 or int32 [B]: sample b teaches neuron labels[b], −1 teaches no neuron. In a
    convolution every patch of an image is taught by the image's label.

    Args:
        average: divide by the number of patches of the class; False sums.
        patches: see `Rule`.
    """

    cli_name = "supervised"
    default_lr = 0.04
    uses_labels = True

    average: bool = True

    def check(self) -> None:
        self._boolean("average")

    def specification(self) -> WinnerSpecification:
        return WinnerSpecification(average=self.average)
