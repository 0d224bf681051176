"""The operators: each module holds the schema, the check, the fake kernel and the public function of one of them.

The kernels are in hebbkern/backends, the compiled ones in csrc/. No operator records gradients. Functions that read
take (x, weight), as in torch.nn.functional; functions that write in place take first what they write.
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
    "accumulate", "apply_", "compete", "dense_step_", "dense_update", "kwinners", "nearest_patch", "winner_step_"
]  # fmt: skip
