"""What the table says besides speed: extra memory of a step, and bits that do not depend on the thread count."""

import hashlib
import subprocess
import sys

import torch

import hebbkern as hk
from hebbkern.benchmark.cases import images, weights

MEBIBYTES = 64  # the limit of the extra memory

# In a process of its own: the peak of the resident memory is reset once everything is loaded and warm.
STEP = """
import torch, hebbkern as hk
from hebbkern.benchmark.cases import images, weights
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
rule, x, w = hk.WTA(), images(512, 3, 32, 32), weights(96, 3, 5, 5)
rule.step_(w, x[:2], lr=1e-3)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
rule.step_(w, x, lr=1e-3)
print(peak() - before)
"""


def memory():
    """The rise of the peak resident memory in an HWTA step on 512x3x32x32, 96 filters 5x5; None where unknown."""
    if not sys.platform.startswith("linux"):
        return None
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    rise = float(done.stdout)
    name = "WTA step, 512x3x32x32 to 96 (5x5)"
    return {"property": "extra memory", "case": name, "MiB": rise, "limit": MEBIBYTES, "holds": rise < MEBIBYTES}


def determinism():
    """How many different weights come of three steps with 1 and 2 threads, twice each; 1 is right. One row a rule."""
    linear, conv = ((256, 784), (300, 784)), ((16, 3, 32, 32), (96, 3, 5, 5))
    rules = ((hk.KrotovHopfield(), linear), (hk.WTA(), conv), (hk.Sanger(), conv), (hk.SoftWTA(), linear))
    before, found = torch.get_num_threads(), []
    try:
        for rule, (x_shape, w_shape) in rules:
            digests = {_digest(rule, x_shape, w_shape, threads) for threads in (1, 2, 1, 2)}
            name = f"{type(rule).__name__}, 1 and 2 threads, twice each"
            row = {"property": "determinism", "case": name, "results": len(digests), "limit": 1}
            found.append(row | {"holds": len(digests) == 1})
    finally:
        torch.set_num_threads(before)
    return found


def _digest(rule, x_shape, w_shape, threads):
    torch.set_num_threads(threads)
    x, w = images(*x_shape), weights(*w_shape)
    for _ in range(3):
        rule.step_(w, x, lr=1e-3)
    return hashlib.sha256(w.contiguous().numpy().tobytes()).hexdigest()
