"""Result files (results/*.json): how they were computed, and statistics over seeds."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import hebbkern as hk
from hebbkern.cli import doctor


def command(module: str, argv: Sequence[str] | None) -> str:
    """Returns the command line that runs `examples.papers.<module>` again, without the folders of this machine."""
    words = [Path(word).stem if "/" in word else word for word in (sys.argv[1:] if argv is None else argv)]
    return shlex.join(["python", "-m", f"examples.papers.{module}", *words])


def provenance(
    module: str, argv: Sequence[str] | None, *, seconds: float, device: str = "cpu", threads: bool = False
) -> dict:
    """Returns the head of a result file: command, versions, machine, and seconds of computing.

    Args:
        module: the part of the module's name after "examples.papers.".
        argv: arguments of the command; None takes those of the process.
        device: "cpu" names the processor, "cuda" the GPU.
        threads: whether the name of the machine includes the number of threads.
    """
    machine = doctor.processor() if torch.device(device).type == "cpu" else torch.cuda.get_device_name()
    return {
        "command": command(module, argv),
        "version": hk.__version__,
        "machine": f"{machine}, {torch.get_num_threads()} threads" if threads else machine,
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
    }


def write(path: Path, content: dict) -> None:
    """Writes a result file."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def deviation(values: Sequence[float]) -> float:
    """Returns the sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Returns the difference of the means and its standard error, for two independent samples.

    The standard error is None where a sample has a single value.
    """
    error = (deviation(ours) ** 2 / len(ours) + deviation(theirs) ** 2 / len(theirs)) ** 0.5
    return {
        "points": statistics.fmean(ours) - statistics.fmean(theirs),
        "standard_error": None if 1 in (len(ours), len(theirs)) else error,
    }
