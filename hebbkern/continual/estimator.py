"""The scikit-learn methods of a layer that learns minibatches: partial_fit, fit, transform, predict, score."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from hebbkern.continual.growth import GrowingLayer
from hebbkern.continual.inputs import as_labels, as_samples, check_shape
from hebbkern.nn.learning import check_rate

CHUNK = 8192  # samples converted and answered at a time, which bounds the memory of the conversion
# A model whose value of one of these changes is reset.
RESETTING = ("in_features", "neurons", "per_class", "start", "normalise", "seed")


class Estimator(GrowingLayer):
    """The methods that scikit-learn's pipelines, clones and cross validation call; `HebbCL` has the rest.

    X [n, ...] and y [n], the labels, are NumPy arrays or tensors on any device. Results are arrays if X is an array,
    otherwise tensors.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ()  # the names of the arguments of the constructor but device and dtype

    def learn(self, x: Tensor, *, lr: float | None = None, labels: Tensor | None = None) -> None:
        raise NotImplementedError

    def _representation(self, x: Tensor, sparse: bool | None = None) -> Tensor:
        raise NotImplementedError

    def _add_classes(self, x: Tensor, labels: Tensor) -> None:
        raise NotImplementedError

    def partial_fit(
        self, X: Any, y: Any = None, batch_size: int = 100, epochs: int = 1, *, lr: float | None = None
    ) -> Self:
        """Learns X in minibatches, in the order given, `epochs` times.

        Neurons for all new classes of y are added before the first minibatch.

        Args:
            X: [n, ...] samples, see `learn`.
            y: [n] integers, the labels, for the supervised variant.
            batch_size: samples in a minibatch.
            epochs: passes over X.
            lr: learning rate; None for the model's own.

        Returns:
            The model.

        Raises:
            ValueError: as `learn`, or batch_size or epochs is below 1. All of X and y are checked before the first
                minibatch.
        """
        samples, labels = self._checked(X, y, batch_size, epochs, lr)
        return self._fitted(samples, labels, batch_size, epochs, lr)

    def fit(self, X: Any, y: Any = None, batch_size: int = 100, epochs: int = 1, *, lr: float | None = None) -> Self:
        """As `partial_fit`, after a `reset` of the model. Wrong arguments are refused before the reset."""
        samples, labels = self._checked(X, y, batch_size, epochs, lr)
        self.reset()
        return self._fitted(samples, labels, batch_size, epochs, lr)

    def transform(self, X: Any) -> Any:
        """The representation [n, width] of X [n, ...]. The model does not learn from X, even inside `learning`.

        Raises:
            ValueError: X does not fit, see `learn`.
        """
        return _like(X, self._answers(X))

    def fit_transform(self, X: Any, y: Any = None, **options: Any) -> Any:
        """`fit(X, y, **options)`, then `transform(X)`."""
        return self.fit(X, y, **options).transform(X)

    def predict(self, X: Any) -> Any:
        """int64 [n]: the class of each sample of X [n, ...]; of an unsupervised model the neuron that wins it.

        The predicted class has the highest sum of activations among the k winners of the sample; a class without a
        winner comes last.

        Raises:
            ValueError: X does not fit, see `learn`, or the model has learned no class.
        """
        if not self.supervised:
            return _like(X, self._answers(X, sparse=False).argmax(1))
        if not len(self.classes):
            raise ValueError("hebbkern.HebbCL: predict needs a class that was learnt, got none yet")
        activations = self._answers(X).unflatten(1, (len(self.classes), self.group_size))
        sums = activations.sum(2).masked_fill((activations == 0).all(2), -torch.inf)
        return _like(X, self.classes[sums.argmax(1)])

    def score(self, X: Any, y: Any) -> float:
        """The accuracy of `predict(X)` against the labels y [n], from 0 to 1."""
        predicted = torch.as_tensor(self.predict(X)).cpu()
        return float((predicted == torch.as_tensor(y).cpu()).double().mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """{name: value} of the arguments of the constructor, without device and dtype."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def set_params(self, **params: Any) -> Self:
        """Changes settings by name; a change of the shape or the start resets the model.

        Returns:
            The model.

        Raises:
            ValueError: a name or a value that the constructor would refuse. The model is unchanged.
        """
        if unknown := sorted(set(params) - set(self.SETTINGS)):
            raise ValueError(f"hebbkern.HebbCL: params must be among {', '.join(self.SETTINGS)}, got {unknown}")
        type(self)(**(self.get_params() | params))  # raises ValueError for wrong values
        resets = any(params.get(name, getattr(self, name)) != getattr(self, name) for name in RESETTING)
        for name, value in params.items():
            setattr(self, name, value)
        if resets:
            self.reset()
        return self

    @property
    def classes_(self) -> np.ndarray:
        """The labels learned so far, in the order in which they came."""
        return self.classes.cpu().numpy()

    def __sklearn_tags__(self) -> Any:
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
        return True  # a new model has a representation already

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fitted(self, x: Tensor, labels: Tensor | None, batch_size: int, epochs: int, lr: float | None) -> Self:
        if labels is not None:
            self._add_classes(x, labels)
        for _ in range(epochs):
            for begin in range(0, len(x), batch_size):
                batch = slice(begin, begin + batch_size)
                self.learn(x[batch].to(self.weight.device), lr=lr, labels=None if labels is None else labels[batch])
        return self

    def _checked(self, X: Any, y: Any, batch_size: int, epochs: int, lr: float | None) -> tuple[Tensor, Tensor | None]:
        """X and y as tensors. Raises ValueError for whatever would stop the learning after it has begun."""
        for name, count in (("batch_size", batch_size), ("epochs", epochs)):
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
                raise ValueError(f"hebbkern.HebbCL: {name} must be a whole number of at least 1, got {count!r}")
        if lr is not None:
            check_rate("HebbCL", lr)
        x = check_shape(_tensor(X), self.in_features)
        labels = as_labels(x, None if y is None else _tensor(y).to(self.weight.device)) if self.supervised else None
        for part in x.split(CHUNK):
            as_samples(part.to(self.weight.device), self.in_features, self.weight)
        return x, labels

    def _answers(self, X: Any, sparse: bool | None = None) -> Tensor:
        """[n, width], `_representation` of all samples."""
        x = _tensor(X)
        parts = x.split(CHUNK) if len(x) else [x]
        return torch.cat([self._representation(part.to(self.weight.device), sparse) for part in parts])


def _tensor(data: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data)) if isinstance(data, np.ndarray) else torch.as_tensor(data)


def _like(data: Any, result: Tensor) -> Any:
    """`result` as an array if `data` is one; NumPy has no bfloat16."""
    if not isinstance(data, np.ndarray):
        return result
    return (result.float() if result.dtype == torch.bfloat16 else result).detach().cpu().numpy()
