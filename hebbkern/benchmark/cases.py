"""The cases of the benchmark: what is computed, on which shapes, within which limits.

The learning steps first, the operators below them. `hebbkern bench --peers` measures those with peers=True. A rule of
hebbkern.rules.RULES that has no case here gets one by itself (`default_cases`).
"""

from collections.abc import Iterable
from typing import Any

import hebbkern as hk
from hebbkern.benchmark.case import Case
from hebbkern.benchmark.operators import accumulate_case, apply_case, kwinners_case, operator_case
from hebbkern.benchmark.steps import epoch_case, grouped_case, hebbcl_case, rule_case

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
DEPTHWISE = (64, 128, 28, 28), (128, 1, 3, 3)
RESNEXT = (64, 128, 28, 28), (128, 4, 3, 3)

NEAR: dict[str, Any] = {"tolerance": 5e-2}  # room for winners that float32 ranks otherwise than float64
KROTOV: dict[str, Any] = {"scale": 1.0, "peers": True, **NEAR}
STABLE: dict[str, Any] = {"lr": 1e-4}  # larger steps of dense rules diverge within the repetitions
DENSE: dict[str, Any] = {"dense": True, **STABLE}
PEERS: dict[str, Any] = {"peers": True}
KROTOV_LIMITS = {"numpy": 10, "forward": 0.45, "unscreened": 1.2}
WTA_LIMITS = {"forward": 0.7, "unscreened": 1.2}

OWN_CASES = (
    rule_case(hk.KrotovHopfield(), *MNIST, **KROTOV, limits=KROTOV_LIMITS),
    rule_case(hk.KrotovHopfield(), *COLOUR, **KROTOV, limits={"forward": 0.5, "unscreened": 1.25}),
    rule_case(hk.KrotovHopfield(), *SMALL, **KROTOV, limits={"numpy": 8, "forward": 3.0}),
    rule_case(hk.KrotovHopfield(), *TINY, **KROTOV),
    epoch_case(60_000, 784, 2000, 100, **NEAR, **PEERS, limits={"numpy": 14}),
    *(rule_case(hk.WTA(), *shapes, **NEAR, **PEERS, limits=WTA_LIMITS) for shapes in HPCA),
    *(rule_case(hk.Sanger(), *shapes, **DENSE, **PEERS, limits={"forward": 1.15}) for shapes in HPCA),
    rule_case(hk.Sanger(), *WIDE, **STABLE, **PEERS, limits={"forward": 5}),
    rule_case(hk.SoftWTA(), *CIFAR, dense=True, tolerance=1e-2, **PEERS),
    hebbcl_case((100, 784), (500, 784), **NEAR, **PEERS, limits={"forward": 2.5}),
    kwinners_case((10_000, 500), k=50, **PEERS, limits={"forward": 0.2}),
    rule_case(hk.WTA(), *MNIST, **NEAR),
    rule_case(hk.Sanger(), *MNIST, **DENSE),
    rule_case(hk.Oja(), *MNIST, **DENSE),
    rule_case(hk.Hebb(), *MNIST, **DENSE),
    rule_case(hk.SoftWTA(), *MNIST, dense=True, tolerance=1e-2),
    rule_case(hk.Supervised(), (1024, 784), (10, 784)),
    *(grouped_case(rule, *DEPTHWISE, limits={"forward": 2.5}) for rule in (hk.WTA(), hk.Sanger(), hk.SoftWTA())),
    *(grouped_case(rule, *RESNEXT, **NEAR) for rule in (hk.KrotovHopfield(), hk.WTA(), hk.Sanger())),
    operator_case("compete", *MNIST, k=2),
    operator_case("compete", *CIFAR, k=1),
    operator_case("nearest_patch", *MNIST),
    accumulate_case(*MNIST, k=2),
    accumulate_case(*CIFAR, k=1),
    operator_case("dense_update", *HPCA[1]),
    operator_case("dense_update", *WIDE),
    apply_case(2000, 784),
    kwinners_case((64, 96, 14, 14), k=5),
)


def default_cases(rules: Iterable[type[hk.Rule]]) -> tuple[Case, ...]:
    """A case, against the bare forward pass, for each of the rules that has none of its own."""
    names = [case.name for case in OWN_CASES]
    missing = [rule for rule in rules if not any(name.startswith(f"{rule.__name__} step") for name in names)]
    return tuple(rule_case(rule(), *MNIST, **STABLE, **NEAR) for rule in missing)


CASES = (*OWN_CASES, *default_cases(hk.rules.RULES.values()))
