"""HebbCL: one wide layer that learns from a stream, freezes what has converged, and grows by as many neurons.

    model = hk.continual.HebbCL(784, neurons=100, max_neurons=500, k=20)
    for x in stream:                       # minibatches [B, 784]: no labels, no task boundaries
        model.learn(x)
    features = model(images)               # [B, neurons]: the k winners of Wx

    model = hk.continual.HebbCL(784, per_class=64, normalise="row_l2", start="samples", k=5)
    model.partial_fit(x, y, epochs=3)      # classes as they come; those of earlier calls keep their bits
    model.predict(images)

Hebbian Continual Representation Learning, algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern import ops
from hebbkern.continual.estimator import Estimator
from hebbkern.continual.rows import STARTS, Rows
from hebbkern.continual.samples import as_patches, normalised, seen
from hebbkern.nn.layers import KWinners
from hebbkern.nn.learning import Hebbian, check_rate
from hebbkern.ops.checks import PATCHES
from hebbkern.rules import WTA
from hebbkern.settings import Settings

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class HebbCL(Estimator, Settings, Hebbian, nn.Module):
    """A layer of neurons that each converge to a pattern of the stream, are frozen there, and make room for another.

    One minibatch, `learn`: each sample teaches the neuron of the highest response (equation 2) by Δw = x − w
    (equation 3; winners are those under the weights at the start of the minibatch), and the rows that moved are
    normalised. A neuron whose distance d²(w, x) / |x|₁ to some sample of the batch is below `threshold` (equation 5)
    is frozen: it goes on to compete, and keeps its bits for ever after. For each one frozen a new neuron is added. The
    representation is equation 1, the k winners of Wx.

    Supervised (`per_class`): a class that was never seen before freezes all neurons and adds `per_class` new ones;
    samples compete among the neurons of their own class only. Classes that are new in the same batch, or in the same
    call of `partial_fit`, are added together. Samples of a class that was frozen teach nobody. The prediction is the
    class whose neurons' k-winner activations have the highest sum.

    Learnt without autograd. Works inside `hebbkern.learning` and `hebbkern.training` as the Hebbian layers do.
    Deterministic, from the seed and the stream, on compiled backends also for any number of threads. A state dict
    holds all that was learnt and loads into a model of the same settings of any width.

    Args:
        in_features: inputs a sample, N; images are flattened.
        neurons: at the start, unsupervised; 100 by default.
        lr: learning rate of `learn`.
        threshold: of the normalised distance below which a neuron is frozen; at least 0 (0: never).
        k: winners that the representation keeps; with fewer neurons than that, all.
        max_neurons: no growth beyond. Unsupervised growth stops there (neurons still freeze); supervised it raises.
        per_class: neurons a class: the supervised variant.
        similarity: "dot" (the paper's) or "cosine", by which neurons compete and answer.
        average: a neuron moves by the mean over the samples it won, False: by their sum.
        normalise: each row that moved is divided by its largest absolute weight ("row_max") or its Euclidean norm
            ("row_l2"); all rows that are not frozen are divided by the largest absolute weight among them
            ("matrix_max", φ as it is printed); or "none". results/hebbcl.json says which the reported numbers use:
            row_max unsupervised, row_l2 supervised.
        patches: "raw", "centred" (each sample less its own mean) or "standardised" (and of norm 1).
        start: of a new neuron, "uniform" in 0 to 1, "normal", or "samples" (on samples of the batch at hand; the first
            neurons of an unsupervised model start "uniform" then). Drawn by the seed, then normalised.
        hebb, freeze, grow, sparse: False leaves out an ingredient (Table 3): nothing is learnt; nothing is frozen
            (converged neurons still make room for new ones, once); the width stays (unsupervised only); all
            activations are kept.
        seed: of where neurons start.

    Attributes:
        weight: [width, N], no gradient. settled: bool [width], the neurons that have converged, or whose class is over.
        classes: int64 [classes], the label of each group of `per_class` rows, in the order of growth.

    Raises:
        ValueError: a setting is out of its range, or max_neurons below the width at the start.
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
        device=None,
        dtype=None,
    ):
        super().__init__()
        if per_class is None and neurons is None:
            neurons = 100
        settings = dict(locals())
        for name in self.SETTINGS:
            setattr(self, name, settings[name])
        self._check()
        self._room = None
        self.weight = nn.Parameter(torch.empty((0, in_features), device=device, dtype=dtype), requires_grad=False)
        self.register_buffer("settled", torch.zeros(0, dtype=torch.bool, device=device))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64, device=device))
        self.reset()

    def _check(self) -> None:
        self._whole("in_features", 1)
        self._whole("k", 1)
        self._whole("seed", 0)
        check_rate("HebbCL", self.lr)
        self._number("threshold", " of at least 0", lambda threshold: threshold >= 0)
        if (self.neurons is None) == (self.per_class is None):
            self._refuse("neurons", "left out where per_class is given", self.neurons)
        least = "per_class" if self.supervised else "neurons"
        self._whole(least, 1)
        if self.max_neurons is not None:
            self._whole("max_neurons", 1)
            if self.max_neurons < getattr(self, least):
                self._refuse("max_neurons", f"at least {least} ({getattr(self, least)})", self.max_neurons)
        self._one_of("similarity", ("dot", "cosine"))
        self._one_of("normalise", ("row_max", "row_l2", "matrix_max", "none"))
        self._one_of("patches", PATCHES)
        self._one_of("start", STARTS)
        for name in ("average", "hebb", "freeze", "grow", "sparse"):
            self._boolean(name)
        if self.supervised and not self.grow:
            self._refuse("grow", "True with per_class, whose classes bring their neurons", self.grow)

    @property
    def supervised(self) -> bool:
        return self.per_class is not None

    @property
    def width(self) -> int:
        """Neurons now."""
        return len(self.weight)

    @property
    def frozen(self) -> Tensor:
        """bool [width], the neurons that do not learn any more."""
        return self.settled if self.freeze else torch.zeros_like(self.settled)

    @property
    def finished(self) -> bool:
        """Whether nothing that may come is learnt any more: all neurons are frozen, and there are no classes to add."""
        return not self.supervised and bool(self.frozen.all())

    @property
    def rule(self) -> WTA:
        """By what the neurons learn."""
        normalise = "none" if self.normalise == "matrix_max" else self.normalise
        how = {"similarity": self.similarity, "average": self.average, "patches": self.patches}
        return WTA(normalise=normalise, **how)

    def forward(self, x: Tensor) -> Tensor:
        """The representation [B, width] of x [B, ...]; inside `hebbkern.learning` x is learnt first."""
        lesson = self.learning_state
        if lesson is not None:
            if lesson.into != "weight" or lesson.group is not None:
                got = f'into="{lesson.into}"' + ("" if lesson.group is None else " and a group")
                self._refuse("learning", 'into="weight" and without a group, as neurons are added', got)
            if lesson.dtype not in (None, self.weight.dtype):
                self._refuse("learning", "dtype=None, as matching and freezing are of the weight's", f"{lesson.dtype}")
            self.learn(x, lesson.labels, lr=lesson.lr)
            if state.after_learning is not None:
                state.after_learning(self)
        return self._represented(x)

    @torch.inference_mode(False)
    @torch.no_grad()
    def learn(self, x: Tensor, labels: Tensor | None = None, *, lr: float | None = None) -> None:
        """Learns one minibatch: winner update, normalisation, freezing, growth. Nothing is recorded for autograd.

        Args:
            x: [B, N] or [B, ...] of N inputs; uint8 counts as 0 to 1. Blank samples (all zeros, or flat where patches
                are centred) teach nobody, an empty batch nothing.
            labels: [B] integers, the class of each sample, of the supervised variant; −1 = teaches nobody. Without
                per_class they are not looked at.
            lr: in place of the model's own.

        Raises ValueError or RuntimeError on another number of inputs, a NaN or an infinity, labels that do not fit, or
        a new class for which max_neurons leaves no room; all that was learnt stays as it was.
        """
        lr = self.lr if lr is None else lr
        check_rate("HebbCL.learn", lr)
        x, _ = self._samples(x.detach() if isinstance(x, Tensor) else x)
        if self.supervised:
            labels = self._labels(x, labels)
            with self._all_or_nothing():
                self._meet(x, labels)
                for label in labels.unique().tolist():
                    self._learn_class(label, x[labels == label], lr)
        elif self.hebb and not self.finished and len(x := seen(x, self.patches)):
            with self._all_or_nothing():
                self.rule.step_(self.weight, x, lr=lr, frozen=self.frozen)
                self._divide(self.weight, self.frozen)
                self._converge(x)

    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(self) -> None:
        """Forgets all: the model as it was made."""
        start = self.start if self.start != "samples" else "uniform"
        self._rows = Rows(self.in_features, self.per_class or self.neurons, start, self.normalise, self.seed)
        self._take_width(0 if self.supervised else self.neurons, keep=False)
        self.settled, self.classes = self.settled.new_zeros(self.width), self.classes[:0]

    @contextmanager
    def _all_or_nothing(self):
        """On an error within, also an interrupt, the model is as before: only rows that learn are kept a copy of."""
        width, settled, classes, learning = self.width, self.settled.clone(), self.classes, ~self.frozen
        kept = self.weight.detach()[learning]
        try:
            yield
        except BaseException:
            self._room = None  # new rows were written to
            self._take_width(width)
            self.weight.detach()[learning] = kept
            self.settled, self.classes = settled, classes
            raise

    def _learn_class(self, label: int, x: Tensor, lr: float) -> None:
        """Samples of one class teach the rows of that class."""
        if label == -1 or not self.hebb or not len(x := seen(x, self.patches)):
            return
        begin = int((self.classes == label).nonzero()) * self.per_class
        own = slice(begin, begin + self.per_class)
        if not self.frozen[own].any():
            self.rule.step_(self.weight[own], x, lr=lr)
            self._divide(self.weight[own], self.frozen[own])

    def _meet(self, x: Tensor, labels: Tensor) -> None:
        """Adds the classes that were never seen, after freezing all others."""
        new = [label for label in labels.unique().tolist() if label != -1 and label not in self.classes.tolist()]
        if not new:
            return
        if self.max_neurons is not None and self.width + len(new) * self.per_class > self.max_neurons:
            wanted = f"at least {self.width + len(new) * self.per_class} for the new classes {new}"
            self._refuse("max_neurons", wanted, self.max_neurons)
        starts = [self._starts(x[labels == label]) for label in new] if self.start == "samples" else []
        self.settled.fill_(True)
        for index, label in enumerate(new):
            rows = self._grow(self.per_class)
            if starts:
                rows.copy_(starts[index])
            self.classes = torch.cat((self.classes, self.classes.new_tensor([label])))

    def _converge(self, x: Tensor) -> None:
        """Settles the neurons that lie at a sample, and adds as many."""
        _, distance = ops.nearest_patch(x, self.weight, patches=self.patches, mask=~self.settled)
        near = distance < self.threshold
        count = int(near.sum())
        if not count:
            return
        self.settled |= near
        room = count if self.max_neurons is None else min(count, self.max_neurons - self.width)
        if self.grow and room:
            starts = (
                self._rows.among(as_patches(x, self.patches), room, self.width) if self.start == "samples" else None
            )
            rows = self._grow(room)
            if starts is not None:
                rows.copy_(starts)

    def _divide(self, weight: Tensor, frozen: Tensor) -> None:
        """Of "matrix_max": rows that are not frozen by the largest absolute weight among them."""
        if self.normalise == "matrix_max":
            weight = weight.detach()
            largest = weight.abs().amax(1).masked_fill(frozen, 0).amax()
            weight.div_(torch.where(frozen | (largest == 0), 1, largest)[:, None])

    def _grow(self, count: int) -> Tensor:
        """The rows of `count` new neurons, which lie in the room already."""
        begin = self.width
        self._take_width(begin + count)
        self.settled = F.pad(self.settled, (0, count))
        return self.weight.detach()[begin:]

    def _take_width(self, width: int, keep: bool = True) -> None:
        """A weight of so many rows: a longer view of the room, or of more room where that is full or was left."""
        weight, room = self.weight.detach(), self._room
        lives = room is not None and room.data_ptr() == weight.data_ptr() and room.dtype == weight.dtype
        if not keep or not lives or width > len(room):
            old = weight[:width] if keep else weight.new_empty((0, self.in_features))
            self._room = self._rows.laid_out(old, width, self.max_neurons)
        self.weight.data = self._room[:width]

    def _starts(self, x: Tensor) -> Tensor:
        """[per_class, N], on samples of x."""
        x, _ = self._samples(x)
        shown = seen(x, self.patches)
        return self._rows.among(as_patches(shown if len(shown) else x, self.patches), self.per_class, self.width)

    def _check_shape(self, x) -> None:
        if not isinstance(x, Tensor):
            self._refuse("x", "a tensor", type(x).__name__)
        if x.dim() < 2 or x.shape[1:].numel() != self.in_features:
            self._refuse("x", f"[B, ...] of {self.in_features} inputs a sample", f"shape {list(x.shape)}")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            self._refuse("x", "floating or uint8", str(x.dtype).removeprefix("torch."))

    def _samples(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x as [B, N] of the weight's dtype, finite; and labels, as they are."""
        self._check_shape(x)
        if x.device != self.weight.device:
            self._refuse("x", f"on {self.weight.device}, as the weight is", x.device)
        images, x = x.dtype == torch.uint8, x.flatten(1).to(self.weight.dtype)
        x = x / 255 if images else x
        wide = torch.promote_types(x.dtype, torch.float32)
        if not torch.linalg.vector_norm(x, dtype=wide).isfinite():  # so that no response or distance overflows
            if x.isfinite().all():
                self._refuse("x", "small enough to be squared and added", f"up to {x.abs().max():g}")
            self._refuse("x", "finite", "a NaN or an infinity")
        return x, labels

    def _patches(self, x: Tensor) -> tuple[Tensor, dict]:
        return x, {}

    def _labels(self, x: Tensor, labels) -> Tensor:
        wanted = f"[{len(x)}] integers, the class of each sample"
        if not isinstance(labels, Tensor):
            self._refuse("labels", wanted, "None" if labels is None else type(labels).__name__)
        if labels.dtype not in WHOLE or labels.shape != x.shape[:1]:
            dtype = str(labels.dtype).removeprefix("torch.")
            self._refuse("labels", wanted, f"{dtype} of shape {list(labels.shape)}")
        return labels.to(torch.int64)

    def _represented(self, x: Tensor, sparse: bool | None = None) -> Tensor:
        """Equation 1; all responses where not sparse."""
        y = self._responses(self._samples(x)[0])
        sparse = self.sparse if sparse is None else sparse
        return KWinners(min(self.k, self.width))(y) if sparse and self.width else y

    def _responses(self, x: Tensor) -> Tensor:
        x, weight = as_patches(x, self.patches), self.weight
        if self.similarity == "cosine":
            x, weight = normalised(x), normalised(weight)
        return F.linear(x, weight)

    def __getstate__(self) -> dict:
        """Copies and pickles leave the spare room behind."""
        weight = nn.Parameter(self.weight.detach().clone(), requires_grad=False)
        return {**self.__dict__, "_room": None, "_parameters": {**self._parameters, "weight": weight}}

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        """Takes on the width of the state, if all of it fits; otherwise nothing changes."""
        if not any(prefix + name in state_dict for name in ("weight", "settled", "classes")):
            missing += [prefix + name for name in ("weight", "settled", "classes")]
            return
        if problem := self.misfit(state_dict, prefix):
            errors.append(problem)
            return
        self._take_width(len(state_dict[prefix + "weight"]), keep=False)
        for name in ("settled", "classes"):
            old = getattr(self, name)
            setattr(self, name, old.new_zeros(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)

    def misfit(self, state: Mapping, prefix: str = "") -> str | None:
        """Why a state dict, where names begin with `prefix`, cannot be loaded into this model; None: it can."""
        weight, settled, classes = (state.get(prefix + name) for name in ("weight", "settled", "classes"))
        if not all(isinstance(value, Tensor) for value in (weight, settled, classes)):
            return f"HebbCL's state must hold {prefix}weight, {prefix}settled and {prefix}classes"
        if weight.dim() != 2 or weight.shape[1] != self.in_features or not (len(weight) or self.supervised):
            return f"weight must be [width, {self.in_features}], got shape {list(weight.shape)}"
        if settled.shape != weight.shape[:1]:
            return f"settled must be one a neuron ({len(weight)}), got shape {list(settled.shape)}"
        if classes.dim() != 1 or divmod(len(weight), self.per_class or len(weight) + 1) != (
            len(classes),
            0 if self.supervised else len(weight),
        ):
            wanted = f"one for each {self.per_class} of {len(weight)} neurons" if self.supervised else "none"
            return f"classes must be {wanted}, got shape {list(classes.shape)}"
        if self.max_neurons is not None and len(weight) > self.max_neurons:
            return f"max_neurons must be at least the {len(weight)} neurons of the state, got {self.max_neurons}"
        return None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.SETTINGS if getattr(self, name) is not None)


HebbCL.SETTINGS = tuple(name for name in signature(HebbCL).parameters if name not in ("device", "dtype"))
