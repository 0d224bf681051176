"""Launching kernels: on the GPU, in Triton's interpreter, into a graph of torch.compile, or into a list.

Every launch of this package goes through ``launch``, and none of them waits for the device or reads a value of it.
``recorded()`` turns launches into a list of what would have run: how the tests count them and see that nothing
synchronises, and how bench/gpu_report learns what to compile for processors that are not there.
"""

import contextlib
import os
import threading
from dataclasses import dataclass

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
    launches = None  # the list that launches go to, instead of the device
    tracing = False  # torch.compile is looking: launches become nodes of its graph


_state = _State()


@dataclass(frozen=True)
class Launch:
    """One launch that was recorded: the kernel, its grid, arguments by position and compile-time settings."""

    kernel: object
    grid: tuple
    arguments: tuple
    settings: dict
    warps: int
    stages: int
    registers: int | None


def launch(kernel, grid, *arguments, warps=4, stages=1, registers=None, in_place=False, **settings):
    """Run ``kernel`` on ``grid`` blocks of ``warps`` warps; ``settings`` are its constexprs.

    ``registers`` a thread may have at most: without it ptxas may spill some to fit one more block on a multiprocessor.
    ``in_place``: it must not run twice on the same tensors, so that nothing about it can be timed.
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

    def run(ways):
        kernel[grid](*arguments, num_warps=ways[0], num_stages=ways[1], **limit, **settings)

    limit, ways = {"maxnreg": registers} if registers else {}, (warps, stages)
    if not in_place and os.environ.get("HEBBKERN_AUTOTUNE"):
        ways = _timed(kernel, ways, arguments, settings, run)
    run(ways)


def _timed(kernel, ways, arguments, settings, run):
    """The fastest of a short list of warps and stages around ``ways``; block sizes are the launchers' to choose."""
    from hebbkern.backends.triton.tuning import fastest  # which asks this module whether launches run

    warps, stages = ways
    others = (min(2 * warps, 16), stages), (max(warps // 2, 1), stages), (warps, stages + 1)
    shape = [number for number in arguments if isinstance(number, int)] + list(settings.values())
    like = next(tensor for tensor in arguments if isinstance(tensor, torch.Tensor))
    return fastest(name_of(kernel), like, shape, tuple(dict.fromkeys((ways, *others))), run)


def name_of(kernel):
    """module.name, as in "compete.compete_kernel"."""
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"


@contextlib.contextmanager
def recorded():
    """Within, launches of this thread are appended to the list that this yields, and nothing runs."""
    before, _state.launches = _state.launches, []
    try:
        yield _state.launches
    finally:
        _state.launches = before


@contextlib.contextmanager
def traced():
    """Within, launches of this thread become nodes of the graph that torch.compile is tracing."""
    before, _state.tracing = _state.tracing, True
    try:
        yield
    finally:
        _state.tracing = before


def launches_run():
    """Whether launches of this thread run, and are neither recorded nor traced."""
    return _state.launches is None and not _state.tracing


def readable(tensor):
    """Whether the values of ``tensor`` can be looked at without waiting for a device."""
    return tensor.device.type == "cpu" and launches_run()


def processors(tensor):
    """How many multiprocessors share the work on ``tensor``."""
    if tensor.device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return INTERPRETED_PROCESSORS if INTERPRETED.value else PROCESSORS


def block(size):
    """``size`` as it is best on a GPU, or longer in the interpreter, where a program costs the same for any length."""
    return max(size, INTERPRETED_BLOCK) if INTERPRETED.value else size


def power_of_2(number, least=1, most=1 << 30):
    """The power of two at or above ``number``, within bounds: tiles have no other lengths."""
    return min(max(triton.next_power_of_2(int(number)), least), most)
