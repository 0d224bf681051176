"""The operators, namespace ``hebbkern::``. Each module here holds one schema, fake kernel and public function.

The kernels are elsewhere: compiled ones in csrc/, plain torch in eager.py. No operator records gradients.
"""

from hebbkern.ops.accumulate import accumulate
from hebbkern.ops.apply import apply_
from hebbkern.ops.compete import compete
from hebbkern.ops.kwinners import kwinners
from hebbkern.ops.learn_dense import learn_dense_
from hebbkern.ops.learn_winners import learn_winners_
from hebbkern.ops.match import match
from hebbkern.ops.sanger import sanger

__all__ = ["accumulate", "apply_", "compete", "kwinners", "learn_dense_", "learn_winners_", "match", "sanger"]
