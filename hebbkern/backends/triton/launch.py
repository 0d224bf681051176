"""Launching kernels: on the GPU, in Triton's interpreter, into a graph of torch.compile, or into a list.

Every launch of this package goes through ``launch``, and none of them waits for the device or reads a value of it.
``recorded()`` turns launches into a list of what would have run: the tests count them and check that nothing
synchronises, and bench/kernel_report.py compiles them for GPUs that are not there.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

PROCESSORS = 132  # multiprocessors of an H100, for which launches are recorded
INTERPRETED_BLOCK = 128
INTERPRETED_PROCESSORS = 3  # so that small tests take the paths on which a GPU shares work out


@triton.jit
def _probe():
    pass


INTERPRETED = tl.constexpr(isinstance(_probe, InterpretedFunction))  # TRITON_INTERPRET=1 when this was imported


class _State(threading.local):
    launches: list | None = None  # the list that launches go to, instead of the device
    tracing = False  # launches become nodes of torch.compile's graph


_state = _State()


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its grid, arguments by position and compile-time settings."""

    kernel: Any
    grid: tuple
    arguments: tuple
    settings: dict
    warps: int
    stages: int
    registers: int | None


def launch(
    kernel: Any, grid: tuple, *arguments: Any,
    warps: int = 4, stages: int = 1, registers: int | None = None, in_place: bool = False, **settings: Any,
) -> None:  # fmt: skip
    """Run ``kernel`` on ``grid`` blocks of ``warps`` warps, with ``stages`` of loads in flight.

    Args:
        arguments: of the kernel, by position; settings: its constexprs.
        registers: the most that a thread may have. Without a limit ptxas may spill some to fit one more block on a
            multiprocessor.
        in_place: whether a second run on the same tensors would change the result, so that the launch cannot be timed.
    """
    grid = (*grid, 1, 1)[:3]
    if 0 in grid:
        return
    if _state.launches is not None:
        _state.launches.append(Launch(kernel, grid, arguments, settings, warps, stages, registers))
        return
    if _state.tracing:  # a graph has no place for a limit of registers
        torch.library.wrap_triton(kernel)[grid](*arguments, num_warps=warps, num_stages=stages, **settings)
        return

    def run(choice: tuple[int, int]) -> None:
        kernel[grid](*arguments, num_warps=choice[0], num_stages=choice[1], **limit, **settings)

    limit, choice = {"maxnreg": registers} if registers else {}, (warps, stages)
    if not in_place and os.environ.get("HEBBKERN_AUTOTUNE"):
        choice = _timed(kernel, choice, arguments, settings, run)
    run(choice)


def _timed(kernel: Any, choice: tuple, arguments: tuple, settings: dict, run: Callable) -> tuple:
    """The fastest of a few (warps, stages) around ``choice``; launchers choose block sizes themselves."""
    from hebbkern.backends.triton.tuning import fastest  # which imports this module

    warps, stages = choice
    others = (min(2 * warps, 16), stages), (max(warps // 2, 1), stages), (warps, stages + 1)
    shape = [number for number in arguments if isinstance(number, int)] + list(settings.values())
    like = next(tensor for tensor in arguments if isinstance(tensor, torch.Tensor))
    return fastest(name_of(kernel), like, shape, tuple(dict.fromkeys((choice, *others))), run)


def name_of(kernel: Any) -> str:
    """module.name, as in "compete.compete_kernel"."""
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """A context in which launches of this thread are appended to the list that it yields, and nothing runs."""
    before, _state.launches = _state.launches, []
    try:
        yield _state.launches
    finally:
        _state.launches = before


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """A context in which launches of this thread become nodes of the graph that torch.compile is tracing."""
    before, _state.tracing = _state.tracing, True
    try:
        yield
    finally:
        _state.tracing = before


def launches_run() -> bool:
    """Whether launches of this thread run, and are neither recorded nor traced."""
    return _state.launches is None and not _state.tracing


def readable(tensor: torch.Tensor) -> bool:
    """Whether the values of ``tensor`` can be read without waiting for a device."""
    return tensor.device.type == "cpu" and launches_run()


def processors(tensor: torch.Tensor) -> int:
    """The number of multiprocessors that share the work on ``tensor``."""
    if tensor.device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return INTERPRETED_PROCESSORS if INTERPRETED.value else PROCESSORS


def block(size: int) -> int:
    """``size`` as it is best on a GPU, or longer in the interpreter, where a program costs the same for any length."""
    return max(size, INTERPRETED_BLOCK) if INTERPRETED.value else size


def power_of_2(number: int, least: int = 1, most: int = 1 << 30) -> int:
    """The power of two at or above ``number``, within bounds: tiles have no other lengths."""
    return min(max(triton.next_power_of_2(int(number)), least), most)
