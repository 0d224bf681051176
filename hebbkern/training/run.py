"""`hebbkern train`: from a configuration to a run folder, in one process or, under torchrun, in several.

    run(Config(data="MNIST", neurons=2000, out="runs/mnist"))
    main(["--data", "MNIST", "--neurons", "2000", "--out", "runs/mnist"])

One folder is one run: another run is refused, and an interrupted run continues in its own folder.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from torch import Tensor, distributed, nn

from hebbkern import __version__, datasets, files
from hebbkern.evaluation import linear_probes
from hebbkern.evaluation.features import Pair
from hebbkern.evaluation.measures import accuracy
from hebbkern.nn.learning import hebbian_layers
from hebbkern.training import config as fields
from hebbkern.training import handlers, network
from hebbkern.training.batches import Batches
from hebbkern.training.checkpoint import last_checkpoint
from hebbkern.training.config import Config, Layer
from hebbkern.training.metrics import Metrics, as_json
from hebbkern.training.train import train

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SAMPLE = 500  # the most images for pictures of winners and activations


def main(argv: list[str]) -> int:
    """Runs `hebbkern train`. Returns the exit status: 0, or 2 after one line on stderr about a wrong argument.

    Raises:
        ValueError, FileExistsError, FileNotFoundError, ImportError, RuntimeError: as `run`.
        OSError: a file cannot be written.
    """
    first = os.environ.get("RANK", "0") == "0"
    try:
        config, report_file = fields.parse(argv)
    except (ValueError, ImportError) as error:
        if first:  # all processes have the same arguments
            print(f"hebbkern train: {error}", file=sys.stderr)
        return 2
    report = run(config)
    if report_file and first:
        files.write(report_file, json.dumps(report, indent=2) + "\n")
    return 0


def run(config: Config) -> dict[str, Any]:
    """Trains the network of `config` and returns the report.

    The run folder gets config.yaml, metrics.jsonl (one line an epoch), report.json, pictures/, tensorboard/ if
    config.tensorboard is True, and the latest two checkpoints. An interrupted run that is resumed ends with the same
    weights, bit for bit. Under torchrun (which sets WORLD_SIZE and related environment variables) each process takes
    its share of every batch, and all end with the same weights; the first process alone writes and prints.

    Args:
        config: the run.

    Returns:
        The content of report.json.

    Raises:
        ValueError: settings do not fit the data or one another, the folder is of another run, or weights diverge.
        FileExistsError: the folder holds this run already, and config.resume is False.
        FileNotFoundError: the data is missing.
        ImportError: a package that reads the data is missing.
        RuntimeError: another process trains in the folder.
    """
    with _processes(config.device) as process:
        if config.threads is not None:
            _set_threads(config.threads, process.rank)
        _check_folder(config)
        with process.first():
            data, held_out = _data(config)
        shape = tuple(data.x_train.shape[1:])
        model = network.build(config, shape, data.classes, process.group).to(process.device)
        with files.locked(Path(config.out)) if process.rank == 0 else contextlib.nullcontext():
            _check_folder(config)  # again, because another process may have been here since
            if process.rank == 0:
                # Without `resume`, so that the file of a resumed run stays as it is.
                fields.save(replace(config, resume=False), Path(config.out, "config.yaml"))
            process.wait()
            return _train(config, model, data, held_out, process)


@dataclass(frozen=True)
class Process:
    """This process: its device, its rank among `ranks` processes, and their group (None of one process)."""

    device: torch.device
    rank: int = 0
    ranks: int = 1
    group: ProcessGroup | None = None

    def wait(self) -> None:
        if self.group is not None:
            distributed.barrier(self.group)

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Context that the first process completes before the others enter, such as for a download."""
        if self.rank > 0:
            self.wait()
        yield
        if self.rank == 0:
            self.wait()


@contextlib.contextmanager
def _processes(device: str) -> Iterator[Process]:
    """Joins the other processes if torchrun has started several."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and not torch.cuda.is_available():
        raise ValueError('hebbkern.training: device must be "cpu" where torch finds no GPU, got "cuda"')
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Process(torch.device("cuda" if cuda else "cpu"))
        return
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if cuda else "gloo", device_id=own if cuda else None)
    try:
        yield Process(own, distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()


def _set_threads(threads: int, rank: int) -> None:
    """Sets torch's threads, at most one a processor: OpenMP crashes where the system has no room for so many."""
    most = os.cpu_count() or 1
    if threads > most and rank == 0:
        print(f"hebbkern train: threads is capped at {most}, one a processor, got {threads}", file=sys.stderr)
    torch.set_num_threads(min(threads, most))


def _check_folder(config: Config) -> None:
    """Refuses a folder of another run, and one with checkpoints unless resuming. Nothing is written."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"hebbkern.training: out must be a folder, got {out}, a file")
    saved, latest = out / "config.yaml", last_checkpoint(out)
    if latest is None:
        return
    if not saved.is_file():
        raise ValueError(
            f"hebbkern.training: out must be the folder of a run, {out} has checkpoints but no config.yaml"
        )
    if changed := fields.differences(config, fields.load(saved)):
        raise ValueError(
            f"hebbkern.training: out must be the folder of this run, {out} differs in {', '.join(changed)}"
        )
    if not config.resume:
        raise FileExistsError(
            f"hebbkern.training: out must hold no checkpoints unless resuming, {out} has {latest.name}"
        )


def _data(config: Config) -> tuple[datasets.Dataset, Pair | None]:
    """The data, preprocessed as fitted on the training images, and the held-out part of the training set."""
    source: dict[str, Any] = {"root": config.root, "download": config.download, "seed": config.seed}
    if not config.validation:
        return datasets.load(config.data, **source, preprocess=config.preprocess, epsilon=config.epsilon), None
    data, held_out = datasets.hold_out(datasets.load(config.data, **source), config.validation, seed=config.seed)
    if fitted := datasets.fit(config.preprocess, data.x_train, epsilon=config.epsilon):
        for x in (data.x_train, data.x_test, held_out[0]):
            fitted.apply_(x)
    return data, held_out


def _train(
    config: Config, model: nn.Module, data: datasets.Dataset, held_out: Pair | None, process: Process
) -> dict[str, Any]:
    layers, names = config.resolved(), list(hebbian_layers(model))
    labelled = config.head is not None or any(layer.make_rule().uses_labels for layer in layers)
    x, labels = (part.to(process.device) for part in (data.x_train, data.y_train))
    order = {"seed": config.seed, "partial": config.partial, "rank": process.rank, "ranks": process.ranks}
    batches = Batches(x, labels if labelled else None, batch_size=config.batch_size, **order)
    start = time.perf_counter()
    with _name_divergence(), _handlers(config, model, data, held_out, process) as attached:
        engine = train(
            model,
            batches,
            lr=_rates(layers, names),
            epochs=_epochs(config, names),
            order=config.order,
            decay=config.decay,
            supervised_from=None if config.head is None else "head",
            optimizer=network.optimizer(config, model),
            group=process.group,
            folder=config.out,
            resume=config.resume,
            save_every=config.save_every,
            progress=process.rank == 0,
            handlers=attached,
        )
    report = _report(config, model, data, engine, process, time.perf_counter() - start)
    if process.rank == 0:
        report |= _measure(config, model, data, held_out)
        files.write(Path(config.out, "report.json"), json.dumps(as_json(report), indent=2) + "\n")
        _print(report)
    return report


def _rates(layers: list[Layer], names: list[str]) -> float | dict[str, float]:
    """One number if all layers have the same rate, so that engine.state.lr is the rate."""
    rates = [layer.lr or 0.0 for layer in layers]
    return rates[0] if len(set(rates)) == 1 else dict(zip(names, rates, strict=True))


def _epochs(config: Config, names: list[str]) -> int | dict[str, int]:
    if config.order != "greedy":
        return config.epochs
    epochs = {name: layer.epochs or 0 for name, layer in zip(names, config.resolved(), strict=True)}
    return epochs if config.head is None else {**epochs, "head": config.head.epochs or config.epochs}


@contextlib.contextmanager
def _handlers(
    config: Config, model: nn.Module, data: datasets.Dataset, held_out: Pair | None, process: Process
) -> Iterator[list[Any]]:
    """The handlers of the first process; the progress bar shows the metrics of the first handler."""
    if process.rank > 0:
        yield []
        return
    out, writer, measured = Path(config.out), None, None if config.head is None else held_out
    measure = dict if measured is None else lambda: {"validation_accuracy": accuracy(model, *measured)}
    if config.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("hebbkern.training: tensorboard is missing: pip install 'hebbkern[log]'") from error
        writer = SummaryWriter(str(out / "tensorboard"))
    try:
        places = {"folder": out / "pictures", "writer": writer, "every": max(config.pictures, 1)}
        pictures = _pictures(config, model, data.x_train if held_out is None else held_out[0], process, places)
        yield [handlers.Figures(model), *pictures, Metrics(out / "metrics.jsonl", measure, writer)]
    finally:
        if writer is not None:
            writer.close()


def _pictures(config: Config, model: nn.Module, x: Tensor, process: Process, places: dict[str, Any]) -> list[Any]:
    if config.pictures == 0:
        return []
    if importlib.util.find_spec("matplotlib") is None:
        print("hebbkern train: no pictures, matplotlib is missing: pip install 'hebbkern[demo]'", file=sys.stderr)
        return []
    sample = x[:: -(-len(x) // SAMPLE)].to(process.device)
    linear = config.resolved()[0].kind == "linear" and x.dim() == 4
    shapes = {"layer1": tuple(x.shape[1:])} if linear else {}
    return [
        handlers.WeightPictures(model, shapes=shapes, **places),
        handlers.Convergence(model, **places),
        handlers.WeightHistograms(model, **places),
        handlers.Winners(model, sample, **places),
        handlers.Activations(model, sample, **places),
    ]


def _report(
    config: Config, model: nn.Module, data: datasets.Dataset, engine: Engine, process: Process, seconds: float
) -> dict[str, Any]:
    return {
        "command": "hebbkern train",
        "version": __version__,
        "config": asdict(config),
        "data": data.name,
        "images": len(data.x_train),
        "layers": {name: f"{layer}" for name, layer in hebbian_layers(model).items()},
        "processes": process.ranks,
        "threads": torch.get_num_threads(),
        "device": str(process.device),
        "epochs": engine.state.epoch,
        "steps": engine.state.iteration,
        "seconds": seconds,
        "metrics": dict(engine.state.metrics),
        "checkpoint": str(last_checkpoint(config.out)),
    }


def _measure(config: Config, model: nn.Module, data: datasets.Dataset, held_out: Pair | None) -> dict[str, Any]:
    """Accuracies of the trained network on images that it has not learnt from."""
    measured: dict[str, Any] = {}
    if config.head is not None:
        measured["head"] = {"test": accuracy(model, data.x_test, data.y_test)}
        if held_out is not None:
            measured["head"]["validation"] = accuracy(model, *held_out)
    if config.readout:
        readouts = linear_probes(model, (data.x_train, data.y_train), (data.x_test, data.y_test))
        measured["readout"] = {name: asdict(readout) for name, readout in readouts.items()}
        measured["test_accuracy"] = list(readouts.values())[-1].test
    return measured


def _print(report: dict[str, Any]) -> None:
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
def _name_divergence() -> Iterator[None]:
    """Names the cause of sums and responses that overflow: in a run, only weights can grow."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if re.match(r"hebbkern\.\w+: (.*got an overflow of|sum must be finite|weight must stay finite)", str(error)):
            raise ValueError("hebbkern.training: the weights grew without bound; lower lr") from error
        raise
