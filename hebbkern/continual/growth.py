"""GrowingLayer: a Hebbian layer that gains neurons without a copy of its weight each time, and its state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.checks import Settings
from hebbkern.nn.state import Hebbian

STARTS = ("uniform", "normal", "samples")
NORMS = {"row_max": float("inf"), "row_l2": 2.0}  # the order of the norm by which a row is divided
STATE = ("weight", "converged", "classes")


class InitialRows:
    """The initial value of every neuron that a weight [K, in_features] may ever have, by its index.

    Section 0 consists of the first `first` rows, and each further section of as many rows as all sections before it.
    The rows of a section are drawn from (seed, section) alone. They depend neither on data nor on how the weight has
    grown, so that a model resumed from its state dict adds the same rows.

    Args:
        in_features: entries of a row. first: rows of section 0.
        start: "normal", or anything else for "uniform" in 0 to 1.
        normalise: a key of NORMS divides each row by this norm.
        seed: of the draws, at least 0.
    """

    def __init__(self, in_features: int, first: int, start: str, normalise: str, seed: int) -> None:
        self.in_features, self.first = in_features, first
        self.start, self.normalise, self.seed = start, normalise, seed

    def storage(self, old: Tensor, count: int, maximum: int | None) -> Tensor:
        """[capacity, in_features] with capacity ≥ count: the rows of `old`, then the initial values of the others.

        The capacity is a whole number of sections, but at most `maximum`.
        """
        edges = [0, self.first]
        while edges[-1] < count:
            edges.append(2 * edges[-1])
        storage = old.new_empty((max(count, min(edges[-1], maximum or edges[-1])), self.in_features))
        storage[: len(old)] = old
        for section, (begin, end) in enumerate(pairwise(edges)):
            if end > len(old):
                drawn = self._drawn(section, end - begin).to(storage)  # a shorter draw could begin with other numbers
                storage[max(begin, len(old)) : end] = drawn[max(len(old) - begin, 0) : len(storage) - begin]
        return storage

    def from_samples(self, x: Tensor, count: int, width: int) -> Tensor:
        """[count, in_features]: samples of x [B, in_features] as initial rows, drawn from (seed, width).

        Samples are drawn without replacement while there are enough.
        """
        generator, order = self._generator(width, 1), []
        while len(order) * len(x) < count:
            order.append(torch.randperm(len(x), generator=generator, device="cpu"))
        return self.normalised(x[torch.cat(order)[:count].to(x.device)])

    def normalised(self, rows: Tensor) -> Tensor:
        """The rows, each divided by its norm if `normalise` asks for it; rows of zeros stay."""
        if self.normalise not in NORMS:
            return rows
        norms = torch.linalg.vector_norm(rows, NORMS[self.normalise], dim=1, keepdim=True)
        return rows / norms.where(norms > 0, 1)

    def _drawn(self, section: int, count: int) -> Tensor:
        generator = self._generator(section, 0)
        draw = torch.randn if self.start == "normal" else torch.rand
        return self.normalised(draw((count, self.in_features), generator=generator, device="cpu", dtype=torch.float32))

    def _generator(self, *key: int) -> torch.Generator:
        """A generator of the CPU, so that every device gets the same rows."""
        words = np.random.SeedSequence((self.seed, *key)).generate_state(2)
        return torch.Generator("cpu").manual_seed(int(words[0]) << 31 ^ int(words[1]))


class GrowingLayer(Settings, Hebbian):
    """A Hebbian layer whose weight is a view of the first `width` rows of a larger tensor, its storage.

    The rest of the storage holds the initial values of neurons to come, so that growth is a longer view; only a full
    storage is replaced by one of twice the size. `HebbCL` describes the attributes.
    """

    grows = True

    in_features: int
    neurons: int | None
    per_class: int | None
    max_neurons: int | None
    start: str
    normalise: str
    seed: int
    freeze: bool
    converged: Tensor
    classes: Tensor

    def _init_state(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Creates the state of a model that has learned nothing; the settings are set already."""
        self._storage: Tensor | None = None
        weight = torch.empty((0, self.in_features), device=device, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("converged", torch.zeros(0, dtype=torch.bool, device=device))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64, device=device))
        self.reset()

    @property
    def supervised(self) -> bool:
        """Whether neurons belong to classes."""
        return self.per_class is not None

    @property
    def group_size(self) -> int:
        """The neurons of a class; of an unsupervised model those at the start."""
        return self.per_class or self.neurons or 1

    @property
    def width(self) -> int:
        """The present number of neurons."""
        return len(self.weight)

    @property
    def frozen(self) -> Tensor:
        """bool [width], True for a neuron that competes but does not learn any more."""
        return self.converged if self.freeze else torch.zeros_like(self.converged)

    @property
    def finished(self) -> bool:
        """Whether no further sample can change the weight: the model is unsupervised and all neurons are frozen."""
        return not self.supervised and bool(self.frozen.all())

    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(self) -> None:
        """Returns the model to the state in which it was constructed."""
        start = self.start if self.start != "samples" else "uniform"
        self._rows = InitialRows(self.in_features, self.group_size, start, self.normalise, self.seed)
        self._set_width(0 if self.supervised else self.group_size, keep=False)
        self.converged, self.classes = self.converged.new_zeros(self.width), self.classes[:0]

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """After an error or an interrupt inside, the model is as before. Only the rows that learn are copied."""
        width, converged, classes, learning = self.width, self.converged.clone(), self.classes, ~self.frozen
        rows = self.weight.detach()[learning]
        try:
            yield
        except BaseException:
            self._storage = None  # its unused rows may have been overwritten
            self._set_width(width)
            self.weight.detach()[learning] = rows
            self.converged, self.classes = converged, classes
            raise

    def _add_rows(self, count: int) -> Tensor:
        """Adds `count` neurons and returns their rows, which have their initial values."""
        begin = self.width
        self._set_width(begin + count)
        self.converged = F.pad(self.converged, (0, count))
        return self.weight.detach()[begin:]

    def _set_width(self, width: int, keep: bool = True) -> None:
        """Makes the weight the first `width` rows of the storage; a new storage keeps the old rows if `keep`."""
        weight, storage = self.weight.detach(), self._storage
        # `load_state_dict(assign=True)`, `to` and copies give the weight memory of its own.
        shared = storage is not None and storage.data_ptr() == weight.data_ptr() and storage.dtype == weight.dtype
        if not keep or storage is None or not shared or width > len(storage):
            old = weight[:width] if keep else weight.new_empty((0, self.in_features))
            storage = self._storage = self._rows.storage(old, width, self.max_neurons)
        self.weight.data = storage[:width]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the weight without the rest of its storage."""
        weight = nn.Parameter(self.weight.detach().clone(), requires_grad=False)
        return {**self.__dict__, "_storage": None, "_parameters": {**self._parameters, "weight": weight}}

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes the width of the state if all of it fits; otherwise nothing changes."""
        if not any(prefix + name in state_dict for name in STATE):
            missing_keys += [prefix + name for name in STATE]
            return
        if problem := self.misfit(state_dict, prefix):
            error_msgs.append(problem)
            return
        self._set_width(len(state_dict[prefix + "weight"]), keep=False)
        for name in ("converged", "classes"):
            setattr(self, name, getattr(self, name).new_zeros(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def misfit(self, state: Mapping[str, Any], prefix: str = "") -> str | None:
        """Why a state dict does not fit this model, as a sentence, or None if it fits.

        Args:
            state: a state dict.
            prefix: of the names of this layer in it.
        """
        weight, converged, classes = (state.get(prefix + name) for name in STATE)
        if not (isinstance(weight, Tensor) and isinstance(converged, Tensor) and isinstance(classes, Tensor)):
            return f"HebbCL's state must hold {prefix}weight, {prefix}converged and {prefix}classes"
        if weight.dim() != 2 or weight.shape[1] != self.in_features or not (len(weight) or self.supervised):
            return f"weight must be [width, {self.in_features}], got shape {list(weight.shape)}"
        width = len(weight)
        if converged.shape != (width,):
            return f"converged must have one entry for each of {width} neurons, got shape {list(converged.shape)}"
        groups, rest = divmod(width, self.group_size) if self.supervised else (0, 0)
        if classes.shape != (groups,) or rest:
            wanted = f"have one entry for {self.group_size} of {width} neurons" if self.supervised else "be empty"
            return f"classes must {wanted}, got shape {list(classes.shape)}"
        if self.max_neurons is not None and width > self.max_neurons:
            return f"max_neurons must be at least the {width} neurons of the state, got {self.max_neurons}"
        return None
