"""Every rule's learning step against NumPy, eager torch and the floor: pytest bench/bench_rules.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("rules"))
def bench_rules(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
