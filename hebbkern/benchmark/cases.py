"""The cases of the benchmark, the one place for them: what is computed, on which shapes, within which limits.

The learning steps first, the operators below them. `hebbkern bench --peers` measures those with peers=True.
"""

import hebbkern as hk
from hebbkern.benchmark.operators import (
    accumulate_case,
    apply_case,
    compete_case,
    kwinners_case,
    match_case,
    sanger_case,
)
from hebbkern.benchmark.steps import epoch_case, hebbcl_case, rule_case

MNIST, COLOUR = ((1024, 784), (2000, 784)), ((1024, 3072), (2000, 3072))
SMALL, TINY = ((100, 784), (100, 784)), ((100, 25), (10, 25))
CIFAR = ((64, 3, 32, 32), (96, 3, 5, 5))
HPCA = (
    CIFAR,
    ((64, 96, 14, 14), (128, 96, 3, 3)),
    ((64, 128, 12, 12), (192, 128, 3, 3)),
    ((64, 192, 5, 5), (256, 192, 3, 3)),
)
WIDE = (64, 2304), (4096, 2304)  # fewer patches than neurons
KROTOV = {"scale": 1.0, "tolerance": 5e-2}  # room for winners that float32 ranks otherwise than float64
DENSE = {"dense": True, "lr": 1e-4}  # larger steps leave the stable range within the repetitions

PEERS = {"peers": True}
CONV_LIMITS = {"floor": 0.7, "unscreened": 1.2}

CASES = (
    rule_case(
        hk.KrotovHopfield(),
        "krotov_hopfield",
        *MNIST,
        **KROTOV,
        **PEERS,
        limits={"numpy": 10, "floor": 0.45, "unscreened": 1.2},
    ),
    rule_case(
        hk.KrotovHopfield(), "krotov_hopfield", *COLOUR, **KROTOV, **PEERS, limits={"floor": 0.5, "unscreened": 1.25}
    ),
    rule_case(hk.KrotovHopfield(), "krotov_hopfield", *SMALL, **KROTOV, **PEERS, limits={"numpy": 8, "floor": 3.0}),
    rule_case(hk.KrotovHopfield(), "krotov_hopfield", *TINY, **KROTOV, **PEERS),
    epoch_case(60_000, 784, 2000, 100, tolerance=5e-2, **PEERS, limits={"numpy": 14}),
    *(rule_case(hk.WTA(), "wta", *shapes, tolerance=5e-2, **PEERS, limits=CONV_LIMITS) for shapes in HPCA),
    *(rule_case(hk.Sanger(), "sanger", *shapes, **DENSE, **PEERS, limits={"floor": 1.15}) for shapes in HPCA),
    rule_case(hk.Sanger(), "sanger", *WIDE, lr=1e-4, **PEERS, limits={"floor": 5}),
    rule_case(hk.SoftWTA(), "soft_wta", *CIFAR, dense=True, tolerance=1e-2, **PEERS),
    hebbcl_case((100, 784), (500, 784), tolerance=5e-2, **PEERS, limits={"floor": 2.5}),
    kwinners_case((10_000, 500), k=50, **PEERS, limits={"floor": 0.2}),
    rule_case(hk.WTA(), "wta", *MNIST, tolerance=5e-2),
    rule_case(hk.Sanger(), "sanger", *MNIST, **DENSE),
    rule_case(hk.Oja(), "oja", *MNIST, **DENSE),
    rule_case(hk.Hebb(), "hebb", *MNIST, **DENSE),
    rule_case(hk.SoftWTA(), "soft_wta", *MNIST, dense=True, tolerance=1e-2),
    rule_case(hk.Supervised(), "teacher", (1024, 784), (10, 784)),
    compete_case(*MNIST, k=2),
    compete_case(*CIFAR, k=1),
    match_case(*MNIST),
    accumulate_case(*MNIST, k=2),
    accumulate_case(*CIFAR, k=1),
    sanger_case(*HPCA[1]),
    sanger_case(*WIDE),
    apply_case(2000, 784),
    kwinners_case((64, 96, 14, 14), k=5),
)
