"""One launcher per operator: a function with the arguments of the operator's schema that launches Triton kernels."""

from __future__ import annotations

from hebbkern.backends.triton.accumulate import accumulate
from hebbkern.backends.triton.apply import apply_
from hebbkern.backends.triton.compete import compete
from hebbkern.backends.triton.dense import dense_step_, dense_update
from hebbkern.backends.triton.kwinners import kwinners
from hebbkern.backends.triton.nearest_patch import nearest_patch
from hebbkern.backends.triton.winner_step import winner_step_

LAUNCHERS = {
    "accumulate": accumulate,
    "apply_": apply_,
    "compete": compete,
    "dense_step_": dense_step_,
    "dense_update": dense_update,
    "kwinners": kwinners,
    "nearest_patch": nearest_patch,
    "winner_step_": winner_step_,
}
