"""`hebbkern train`: from a configuration to a run folder, in one process or, under torchrun, in several.

run(Config(data="MNIST", neurons=2000, out="runs/mnist"))
main(["--data", "MNIST", "--neurons", "2000", "--out", "runs/mnist"])
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from hebbkern import __version__, datasets
from hebbkern.evaluation import linear_probes
from hebbkern.evaluation.features import eval_mode, hebbian_layers
from hebbkern.training import config as fields
from hebbkern.training import folder, handlers, network
from hebbkern.training.batches import Batches
from hebbkern.training.checkpoint import last_checkpoint
from hebbkern.training.config import Config, Layer
from hebbkern.training.train import train

CHUNK = 1000  # images at a time, where the classifier is measured
SAMPLE = 500  # images, at most, on which pictures show who wins and how active layers are


def main(argv: list[str]) -> int:
    """Runs `hebbkern train`; returns the exit status: 0, 1 or 2 after one line on stderr for what can be put right."""
    from hebbkern.training.arguments import parse

    try:
        config, report_file = parse(argv)
    except (ValueError, ImportError) as error:
        return _complain(error, 2) if _rank() == 0 else 2  # all processes have the same arguments
    try:
        report = run(config)
        if report_file and _rank() == 0:
            Path(report_file).write_text(json.dumps(report, indent=2) + "\n")
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("hebbkern"):
            raise
        return _complain(error, 1)
    return 0


def run(config: Config) -> dict:
    """Trains what `config` describes and returns the report, which the run folder holds as report.json.

    The folder also gets config.yaml, metrics.jsonl (a line an epoch), pictures/, tensorboard/ if asked for, and the
    latest two checkpoints. An interrupted run that is resumed ends with the same weights, bit for bit.

    Under torchrun (WORLD_SIZE and what goes with it in the environment) each process takes its share of every batch,
    and all end with the same weights; the first one alone writes and prints.

    Raises:
        ValueError: settings that do not fit the data or one another, a folder of another run, weights that diverge.
        FileExistsError: the folder holds this run already, and config.resume is False.
        FileNotFoundError, ImportError: data, or a package for it, that is not there.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with _processes(config.device) as place:
        folder.check(config)
        with place.first():
            data, held_out = _data(config)
        model = network.build(config, tuple(data.x_train.shape[1:]), data.classes, place.group).to(place.device)
        if place.rank == 0:
            fields.save(config, Path(config.out, "config.yaml"))
        place.wait()
        return _train(config, model, data, held_out, place)


@dataclass(frozen=True)
class Place:
    """Where a process stands: its device, its rank among `ranks` processes, and their group (None of one process)."""

    device: torch.device
    rank: int = 0
    ranks: int = 1
    group: Any = None

    def wait(self) -> None:
        if self.group is not None:
            distributed.barrier(self.group)

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes through it before the others: what it downloads, they find."""
        if self.rank > 0:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()


@contextlib.contextmanager
def _processes(device: str) -> Iterator[Place]:
    """Joins the other processes where torchrun has started several."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise ValueError('hebbkern.training: device must be "cpu" where torch finds no GPU, got "cuda"')
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place(torch.device("cuda" if cuda else "cpu"))
        return
    here = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(here)
    distributed.init_process_group("nccl" if cuda else "gloo", device_id=here if cuda else None)
    try:
        yield Place(here, distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()


def _data(config: Config) -> tuple[datasets.Dataset, tuple[Tensor, Tensor] | None]:
    """The data, preprocessed as fitted on what is trained on, and the held out part of the training set."""
    source = {"root": config.root, "download": config.download, "seed": config.seed}
    if not config.validation:
        return datasets.load(config.data, **source, preprocess=config.preprocess, epsilon=config.epsilon), None
    data, held_out = datasets.hold_out(datasets.load(config.data, **source), config.validation, seed=config.seed)
    if fitted := datasets.fit(config.preprocess, data.x_train, epsilon=config.epsilon):
        for x in (data.x_train, data.x_test, held_out[0]):
            fitted.apply_(x)
    return data, held_out


def _train(config: Config, model: nn.Module, data: datasets.Dataset, held_out, place: Place) -> dict:
    layers, names = config.resolved(), list(hebbian_layers(model))
    needed = config.head is not None or any(layer.rule == "teacher" for layer in layers)
    x, labels = (part.to(place.device) for part in (data.x_train, data.y_train))
    batches = Batches(
        x,
        labels if needed else None,
        size=config.batch,
        seed=config.seed,
        partial=config.partial,
        rank=place.rank,
        ranks=place.ranks,
    )
    start = time.perf_counter()
    with _naming_divergence(), _handlers(config, model, data, held_out, place) as attached:
        engine = train(
            model,
            batches,
            lr=_rates(layers, names),
            epochs=_epochs(config, names),
            order=config.order,
            decay=config.decay,
            supervised_from=None if config.head is None else "head",
            optimizer=network.optimizer(config, model),
            group=place.group,
            folder=config.out,
            resume=config.resume,
            save_every=config.save_every,
            progress=place.rank == 0,
            handlers=attached,
        )
    report = _report(config, model, data, engine, place, time.perf_counter() - start)
    if place.rank == 0:
        report |= _measure(config, model, data, held_out)
        Path(config.out, "report.json").write_text(json.dumps(folder.finite(report), indent=2) + "\n")
        _say(report)
    return report


def _rates(layers: list[Layer], names: list[str]) -> float | dict[str, float]:
    """One number where all layers have the same, so that engine.state.lr tells it."""
    rates = [layer.lr for layer in layers]
    return rates[0] if len(set(rates)) == 1 else dict(zip(names, rates, strict=True))


def _epochs(config: Config, names: list[str]) -> int | dict[str, int]:
    if config.order != "greedy":
        return config.epochs
    epochs = {name: layer.epochs for name, layer in zip(names, config.resolved(), strict=True)}
    return epochs if config.head is None else {**epochs, "head": config.head.epochs or config.epochs}


@contextlib.contextmanager
def _handlers(config: Config, model: nn.Module, data: datasets.Dataset, held_out, place: Place) -> Iterator[list]:
    """What the first process writes while it trains; the bar shows the figures of the first of them."""
    if place.rank > 0:
        yield []
        return
    out, measured = Path(config.out), config.head is not None and held_out is not None
    measure = (lambda: {"validation_accuracy": accuracy(model, *held_out)}) if measured else dict
    writer = folder.tensorboard(out / "tensorboard") if config.tensorboard else None
    try:
        where = {"folder": out / "pictures", "writer": writer, "every": max(config.pictures, 1)}
        pictures = _pictures(config, model, data.x_train if held_out is None else held_out[0], place, where)
        yield [handlers.Figures(model), *pictures, folder.Metrics(out / "metrics.jsonl", measure, writer)]
    finally:
        if writer is not None:
            writer.close()


def _pictures(config: Config, model: nn.Module, x: Tensor, place: Place, where: dict) -> list:
    if config.pictures == 0:
        return []
    if importlib.util.find_spec("matplotlib") is None:
        print("hebbkern train: no pictures, for matplotlib is missing: pip install 'hebbkern[demo]'", file=sys.stderr)
        return []
    sample = x[:: -(-len(x) // SAMPLE)].to(place.device)
    linear = config.resolved()[0].kind == "linear" and x.dim() == 4
    shapes = {"layer1": tuple(x.shape[1:])} if linear else {}
    return [
        handlers.WeightPictures(model, shapes=shapes, **where),
        handlers.Convergence(model, **where),
        handlers.WeightHistograms(model, **where),
        handlers.Winners(model, sample, **where),
        handlers.Activations(model, sample, **where),
    ]


def _report(config: Config, model: nn.Module, data, engine, place: Place, seconds: float) -> dict:
    return {
        "command": "hebbkern train",
        "version": __version__,
        "config": asdict(config),
        "data": data.name,
        "images": len(data.x_train),
        "layers": {name: f"{layer}" for name, layer in hebbian_layers(model).items()},
        "processes": place.ranks,
        "threads": torch.get_num_threads(),
        "device": str(place.device),
        "epochs": engine.state.epoch,
        "steps": engine.state.iteration,
        "seconds": seconds,
        "metrics": dict(engine.state.metrics),
        "checkpoint": str(last_checkpoint(config.out)),
    }


def _measure(config: Config, model: nn.Module, data, held_out) -> dict:
    """What the trained network is worth on images that taught it nothing."""
    measured = {}
    if config.head is not None:
        measured["head"] = {"test": accuracy(model, data.x_test, data.y_test)}
        if held_out is not None:
            measured["head"]["validation"] = accuracy(model, *held_out)
    if config.readout:
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
        measured["readout"] = {name: asdict(found) for name, found in linear_probes(model, train, test).items()}
        measured["test_accuracy"] = list(measured["readout"].values())[-1]["test"]
    return measured


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The share of x that the model's highest output names, from 0 to 1."""
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad():
        right = [
            (model(part.to(device)).argmax(1).cpu() == wanted).sum().item()
            for part, wanted in zip(x.split(CHUNK), labels.split(CHUNK), strict=True)
        ]
    return sum(right) / len(x)


def _say(report: dict) -> None:
    layers = ", ".join(f"{name} {layer}" for name, layer in report["layers"].items())
    print(
        f"{layers}: {report['epochs']} epochs of {report['images']} images in {report['seconds']:.1f} s: "
        f"{report['checkpoint']}"
    )
    for name, readout in report.get("readout", {}).items():
        print(f"linear readout of {name}: test accuracy {100 * readout['test']:.1f} %")
    for part, value in report.get("head", {}).items():
        print(f"classifier: {part} accuracy {100 * value:.1f} %")


@contextlib.contextmanager
def _naming_divergence():
    """Says of sums and responses that overflow what made them do so: here the weights are all that grows."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if re.match(r"hebbkern\.\w+: (.*got an overflow of|sum must be finite|weight must stay finite)", str(error)):
            raise ValueError("hebbkern.training: the weights grew without bound; lower lr") from error
        raise


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _complain(error: Exception, status: int) -> int:
    process = f" (process {_rank()})" if _rank() else ""
    print(f"hebbkern train{process}: {error}", file=sys.stderr)
    return status
