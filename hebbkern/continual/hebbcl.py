"""HebbCL: a wide layer that learns from a stream, freezes neurons that have converged and adds as many new ones.

    model = hk.continual.HebbCL(784, neurons=100, max_neurons=500, k=20)
    for x in stream:                       # minibatches [B, 784]: no labels, no task boundaries
        model.learn(x)
    features = model(images)               # [B, neurons]: the k winners of Wx

    model = hk.continual.HebbCL(784, per_class=64, normalise="row_l2", start="samples", k=5)
    model.partial_fit(x, y, epochs=3)      # classes as they come; the neurons of earlier classes keep their bits
    model.predict(images)

Hebbian Continual Representation Learning, algorithms 1 and 2.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern import ops
from hebbkern.checks import PATCHES
from hebbkern.continual.estimator import Estimator
from hebbkern.continual.growth import STARTS
from hebbkern.continual.inputs import as_labels, as_samples
from hebbkern.nn.kwinners import KWinners
from hebbkern.nn.learning import check_rate
from hebbkern.nn.patches import as_patches, unit_rows, without_blank
from hebbkern.nn.state import state_of_pass
from hebbkern.rules import WTA


class HebbCL(Estimator):
    """A layer that freezes neurons that have converged to a pattern of the stream, and adds as many new ones.

    `learn` takes one minibatch. Each sample moves the neuron of the highest response (equation 2) by Δw = x − w
    (equation 3); the winners are those under the weights at the start of the minibatch. The rows that moved are then
    normalised. A neuron whose distance d²(w, x) / |x|₁ to a sample of the batch is below `threshold` (equation 5) has
    converged and is frozen: it still competes, but its row keeps its bits from then on. For each frozen neuron a new
    one is added. The representation is equation 1, the k winners of Wx.

    Supervised (`per_class`): a new class freezes all neurons and adds `per_class` new ones; samples compete among the
    neurons of their own class only. Classes that are new in the same batch, or in the same call of `partial_fit`, are
    added together. Samples of a class that is frozen change nothing. The prediction is the class whose neurons have the
    highest sum of activations among the k winners.

    The model learns without autograd, also inside `hebbkern.learning` and `hebbkern.training`, as the other Hebbian
    layers do. Given the seed and the stream it is deterministic, with compiled backends for any number of threads. A
    state dict holds all that was learned and loads into a model with the same settings and any width.

    Args:
        in_features: N, the inputs of a sample; images are flattened.
        neurons: unsupervised neurons at the start; 100 by default.
        lr: learning rate of `learn`.
        threshold: of the normalised distance below which a neuron has converged, at least 0; with 0 none converges.
        k: number of winners in the representation; all neurons if there are fewer.
        max_neurons: upper bound of the width, or None. An unsupervised model stops growing there (neurons still
            freeze); for a supervised one `learn` raises.
        per_class: neurons of a class, for the supervised variant.
        similarity: "dot" (the paper's) or "cosine", by which neurons compete and answer.
        average: a neuron moves by the mean over the samples that it won; False for their sum.
        normalise: each row that moved is divided by its largest absolute weight ("row_max") or its Euclidean norm
            ("row_l2"); all rows that are not frozen are divided by the largest absolute weight among them
            ("matrix_max", the paper's φ as printed); or "none". results/hebbcl.json shows which one reaches the
            paper's numbers: row_max unsupervised, row_l2 supervised.
        patches: "raw", "centred" (each sample minus its own mean) or "standardised" (and divided by its norm).
        start: initial value of a neuron, "uniform" in 0 to 1, "normal", or "samples" (samples of the current batch;
            the first neurons of an unsupervised model are then "uniform"). Drawn from the seed, then normalised.
        hebb, freeze, grow, sparse: False leaves out one part (table 3). Without hebb nothing is learned. Without freeze
            neurons that have converged go on learning, and still add a new neuron each. Without grow the width stays
            (unsupervised only). Without sparse the representation has all activations.
        seed: of the initial values.
        device, dtype: as for `torch.nn.Linear`.

    Attributes:
        weight: [width, N], without gradient.
        converged: bool [width], True for a neuron that has converged, or whose class is complete.
        frozen: bool [width], the neurons that do not learn: `converged`, or all False with freeze=False.
        classes: int64 [classes], the label of each group of `per_class` rows, in the order in which they were added.

    Raises:
        ValueError: a setting is out of its range, or max_neurons is below the width at the start.
    """

    def __init__(
        self,
        in_features: int,
        neurons: int | None = None,
        *,
        lr: float = 0.1,
        threshold: float = 0.1,
        k: int = 20,
        max_neurons: int | None = None,
        per_class: int | None = None,
        similarity: str = "dot",
        average: bool = True,
        normalise: str = "row_max",
        patches: str = "raw",
        start: str = "uniform",
        hebb: bool = True,
        freeze: bool = True,
        grow: bool = True,
        sparse: bool = True,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.per_class, self.max_neurons = in_features, per_class, max_neurons
        self.neurons = 100 if neurons is None and per_class is None else neurons
        self.lr, self.threshold, self.k, self.seed = lr, threshold, k, seed
        self.similarity, self.average, self.normalise = similarity, average, normalise
        self.patches, self.start = patches, start
        self.hebb, self.freeze, self.grow, self.sparse = hebb, freeze, grow, sparse
        self._check()
        self._init_state(device, dtype)

    def _check(self) -> None:
        """Raises ValueError for a setting that is out of its range."""
        self._whole("in_features", 1)
        self._whole("k", 1)
        self._whole("seed", 0)
        check_rate("HebbCL", self.lr)
        self._number("threshold", " of at least 0", lambda threshold: threshold >= 0)
        if (self.neurons is None) == (self.per_class is None):
            self._refuse("neurons", "left out where per_class is given", self.neurons)
        group = "per_class" if self.supervised else "neurons"
        self._whole(group, 1)
        if self.max_neurons is not None:
            self._whole("max_neurons", 1)
            if self.max_neurons < self.group_size:
                self._refuse("max_neurons", f"at least {group} ({self.group_size})", self.max_neurons)
        self._one_of("similarity", ("dot", "cosine"))
        self._one_of("normalise", ("row_max", "row_l2", "matrix_max", "none"))
        self._one_of("patches", PATCHES)
        self._one_of("start", STARTS)
        for name in ("average", "hebb", "freeze", "grow", "sparse"):
            self._boolean(name)
        if self.supervised and not self.grow:
            self._refuse("grow", "True with per_class, which adds neurons for each class", self.grow)

    @property
    def rule(self) -> WTA:
        """The rule by which the neurons learn."""
        normalise = "none" if self.normalise == "matrix_max" else self.normalise
        return WTA(similarity=self.similarity, average=self.average, normalise=normalise, patches=self.patches)

    def forward(self, x: Tensor) -> Tensor:
        """The representation [B, width] of x [B, ...]; inside `hebbkern.learning` the model first learns x.

        Raises:
            ValueError: as `learn`, or `hebbkern.learning` has into="grad", a group, or another dtype than the weight's.
        """
        state = state_of_pass(self, x)
        if state is not None:
            if state.into != "weight" or state.group is not None:
                got = f'into="{state.into}"' + ("" if state.group is None else " and a group")
                self._refuse("learning", 'into="weight" and without a group, as neurons are added', got)
            if state.dtype not in (None, self.weight.dtype):
                self._refuse("learning", "dtype=None, as distances are computed in the weight's dtype", state.dtype)
            self.learn(x, lr=state.lr, labels=state.labels)
            if state.after_learning is not None:
                state.after_learning(self)
        return self._representation(x)

    @torch.inference_mode(False)
    @torch.no_grad()
    def learn(self, x: Tensor, *, lr: float | None = None, labels: Tensor | None = None) -> None:
        """Learns one minibatch: step of the winners, normalisation, freezing, growth. Autograd records nothing.

        Args:
            x: [B, N] or [B, ...] of N inputs a sample; uint8 is scaled to 0 to 1. Blank samples (all zeros, or flat
                where patches are centred) and empty batches change nothing.
            lr: learning rate; None for the model's own.
            labels: [B] integers, the class of each sample, for the supervised variant; a sample of label −1 changes
                nothing. Ignored without per_class.

        Raises:
            ValueError: x has another number of inputs, a NaN or an infinity, labels do not fit, or max_neurons leaves
                no room for a new class. The model is unchanged.
        """
        lr = check_rate("HebbCL.learn", self.lr if lr is None else lr)
        x = as_samples(x.detach() if isinstance(x, Tensor) else x, self.in_features, self.weight)
        if self.supervised:
            labels = as_labels(x, labels)
            with self._all_or_nothing():
                self._add_classes(x, labels)
                for label in labels.unique().tolist():
                    self._learn_class(label, x[labels == label], lr)
        elif self.hebb and not self.finished and len(x := without_blank(x, self.patches)):
            with self._all_or_nothing():
                self.rule.step_(self.weight, x, lr=lr, frozen=self.frozen)
                self._normalise_matrix(self.weight, self.frozen)
                self._freeze_and_grow(x)

    def _learn_class(self, label: int, x: Tensor, lr: float) -> None:
        """One step of the rows of one class on samples of this class."""
        if label == -1 or not self.hebb or not len(x := without_blank(x, self.patches)):
            return
        begin = int((self.classes == label).nonzero()) * self.group_size
        rows = slice(begin, begin + self.group_size)
        if not self.frozen[rows].any():
            self.rule.step_(self.weight[rows], x, lr=lr)
            self._normalise_matrix(self.weight[rows], self.frozen[rows])

    def _add_classes(self, x: Tensor, labels: Tensor) -> None:
        """Adds neurons for the labels that are new, after freezing all others."""
        known = {-1, *self.classes.tolist()}
        new = [label for label in labels.unique().tolist() if label not in known]
        if not new:
            return
        width = self.width + len(new) * self.group_size
        if self.max_neurons is not None and width > self.max_neurons:
            self._refuse("max_neurons", f"at least {width} for the new classes {new}", self.max_neurons)
        samples = [self._rows_of_class(x[labels == label]) for label in new] if self.start == "samples" else []
        self.converged.fill_(True)
        for index, label in enumerate(new):
            rows = self._add_rows(self.group_size)
            if samples:
                rows.copy_(samples[index])
            self.classes = torch.cat((self.classes, self.classes.new_tensor([label])))

    def _rows_of_class(self, x: Tensor) -> Tensor:
        """[per_class, N], initial rows from samples x of one class."""
        x = as_samples(x, self.in_features, self.weight)
        informative = without_blank(x, self.patches)
        x = as_patches(informative if len(informative) else x, self.patches)
        return self._rows.from_samples(x, self.group_size, self.width)

    def _freeze_and_grow(self, x: Tensor) -> None:
        """Marks the neurons that have converged to a sample of x, and adds as many new ones."""
        _, distance = ops.nearest_patch(x, self.weight, patches=self.patches, eligible=~self.converged)
        near = distance < self.threshold
        count = int(near.sum())
        if not count:
            return
        self.converged |= near
        count = count if self.max_neurons is None else min(count, self.max_neurons - self.width)
        if not self.grow or not count:
            return
        if self.start == "samples":
            samples = self._rows.from_samples(as_patches(x, self.patches), count, self.width)
            self._add_rows(count).copy_(samples)
        else:
            self._add_rows(count)

    def _normalise_matrix(self, weight: Tensor, frozen: Tensor) -> None:
        """For "matrix_max": divides the rows that are not frozen by the largest absolute weight among them."""
        if self.normalise == "matrix_max":
            weight = weight.detach()
            largest = weight.abs().amax(1).masked_fill(frozen, 0).amax()
            weight.div_(torch.where(frozen | (largest == 0), 1, largest)[:, None])

    def _rule_weight(self, weight: Tensor) -> Tensor:
        return weight

    def _rule_input(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        return as_samples(x, self.in_features, self.weight), labels, {}

    def _representation(self, x: Tensor, sparse: bool | None = None) -> Tensor:
        """Equation 1, or all responses if not sparse; None for the setting `sparse`."""
        x, weight = as_patches(as_samples(x, self.in_features, self.weight), self.patches), self.weight
        if self.similarity == "cosine":
            x, weight = unit_rows(x), unit_rows(weight)
        y = F.linear(x, weight)
        sparse = self.sparse if sparse is None else sparse
        return KWinners(min(self.k, self.width))(y) if sparse and self.width else y

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.SETTINGS if getattr(self, name) is not None)


HebbCL.SETTINGS = tuple(name for name in signature(HebbCL).parameters if name not in ("device", "dtype"))
