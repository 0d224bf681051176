"""The operators, namespace ``hebbkern::``. Each module here holds one schema, fake kernel and public function.

The kernels are elsewhere: compiled ones in csrc/, plain torch in eager.py. No operator records gradients.
"""

from hebbkern.ops.accumulate import accumulate
from hebbkern.ops.apply import apply_
from hebbkern.ops.compete import compete
from hebbkern.ops.dense_step import dense_step_
from hebbkern.ops.dense_update import dense_update
from hebbkern.ops.kwinners import kwinners
from hebbkern.ops.nearest_patch import nearest_patch
from hebbkern.ops.winner_step import winner_step_

__all__ = [
    "accumulate",
    "apply_",
    "compete",
    "dense_step_",
    "dense_update",
    "kwinners",
    "nearest_patch",
    "winner_step_",
]
