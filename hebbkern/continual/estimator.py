"""scikit-learn's methods for a model that learns minibatches: partial_fit, fit, transform, predict, score."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from hebbkern.nn.learning import check_rate

CHUNK = 8192  # samples that are answered, or looked through, at a time: what they are converted to stays small
# With others of these a model begins anew.
SHAPE = ("in_features", "neurons", "per_class", "start", "normalise", "seed")


class Estimator:
    """What scikit-learn asks of a model, and pipelines, clones and cross validation of its own; see `HebbCL`.

    X [n, ...] and y [n] may be NumPy arrays or tensors on any device; what comes out is an array where X is one.
    """

    def partial_fit(self, X, y=None, batch_size: int = 100, epochs: int = 1, *, lr: float | None = None):
        """Learns X [n, ...] in minibatches, in the order given, `epochs` times; y [n] and lr are those of `learn`.

        All classes of y that are new are added before the first minibatch. Returns the model. Raises as `learn`, and
        ValueError on a batch_size or epochs below 1; an error in X or y is found before anything is learnt.
        """
        X, labels = self._checked(X, y, batch_size, epochs, lr)
        return self._fitted(X, labels, batch_size, epochs, lr)

    def fit(self, X, y=None, batch_size: int = 100, epochs: int = 1, *, lr: float | None = None):
        """As `partial_fit`, of a model that forgets all it knew first (where X and y are in order)."""
        X, labels = self._checked(X, y, batch_size, epochs, lr)
        self.reset()
        return self._fitted(X, labels, batch_size, epochs, lr)

    def transform(self, X):
        """The representation [n, width] of X [n, ...]. Nothing is learnt from X, inside `learning` neither."""
        return _like(X, self._answers(X))

    def fit_transform(self, X, y=None, **options):
        return self.fit(X, y, **options).transform(X)

    def predict(self, X):
        """int64 [n]: the class of each sample of X [n, ...]; unsupervised, the neuron that wins it.

        The class is the one whose neurons' activations among the k winners have the highest sum (a class without any
        winner comes last). Raises ValueError where no class was learnt yet.
        """
        if not self.supervised:
            return _like(X, self._answers(X, sparse=False).argmax(1))
        if not len(self.classes):
            raise ValueError("hebbkern.HebbCL: predict needs a class that was learnt, got none yet")
        y = self._answers(X).unflatten(1, (len(self.classes), self.per_class))
        sums = y.sum(2).masked_fill((y == 0).all(2), -torch.inf)
        return _like(X, self.classes[sums.argmax(1)])

    def score(self, X, y) -> float:
        """The share of the samples whose class is found, 0 to 1."""
        found = torch.as_tensor(self.predict(X)).cpu()
        return float((found == torch.as_tensor(y).cpu()).double().mean())

    def get_params(self, deep: bool = True) -> dict:
        """The settings by name (device and dtype are not among them)."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def set_params(self, **params):
        """Other settings; with another shape or start the model forgets all. Wrong ones are a ValueError."""
        if unknown := sorted(set(params) - set(self.SETTINGS)):
            raise ValueError(f"hebbkern.HebbCL: params must be among {', '.join(self.SETTINGS)}, got {unknown}")
        type(self)(**(self.get_params() | params))  # refuses what is wrong
        other = any(params.get(name, getattr(self, name)) != getattr(self, name) for name in SHAPE)
        for name, value in params.items():
            setattr(self, name, value)
        if other:
            self.reset()
        return self

    @property
    def classes_(self) -> np.ndarray:
        """The labels learnt so far, in their order."""
        return self.classes.cpu().numpy()

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags, TransformerTags

        kind, classifier = ("classifier", ClassifierTags()) if self.supervised else ("transformer", None)
        return Tags(
            estimator_type=kind,
            target_tags=TargetTags(required=self.supervised),
            transformer_tags=TransformerTags(),
            classifier_tags=classifier,
            regressor_tags=None,
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True  # it answers from its start on

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fitted(self, X: Tensor, labels: Tensor | None, batch_size: int, epochs: int, lr: float | None):
        if self.supervised:
            self._meet(X, labels)
        for _ in range(epochs):
            for begin in range(0, len(X), batch_size):
                batch = slice(begin, begin + batch_size)
                self.learn(self._here(X[batch]), None if labels is None else labels[batch], lr=lr)
        return self

    def _checked(self, X, y, batch_size, epochs, lr) -> tuple[Tensor, Tensor | None]:
        """X and labels as tensors, once nothing in them can stop the learning half way."""
        for name, count in (("batch_size", batch_size), ("epochs", epochs)):
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
                raise ValueError(f"hebbkern.HebbCL: {name} must be a whole number of at least 1, got {count!r}")
        if lr is not None:
            check_rate("HebbCL", lr)
        X = _tensor(X)
        self._check_shape(X)
        labels = self._labels(X, y if y is None else self._here(_tensor(y))) if self.supervised else None
        for part in X.split(CHUNK):
            self._samples(self._here(part))
        return X, labels

    def _answers(self, X, sparse: bool | None = None) -> Tensor:
        X = _tensor(X)
        return torch.cat([self._represented(self._here(part), sparse) for part in (X.split(CHUNK) if len(X) else [X])])

    def _here(self, x: Tensor) -> Tensor:
        return x.to(self.weight.device)


def _tensor(given) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(given)) if isinstance(given, np.ndarray) else torch.as_tensor(given)


def _like(given, found: Tensor):
    """An array where one was given; NumPy has no bfloat16."""
    if not isinstance(given, np.ndarray):
        return found
    return (found.float() if found.dtype == torch.bfloat16 else found).detach().cpu().numpy()
