"""match against NumPy, eager torch and the floor: pytest bench/bench_match.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("match"))
def bench_match(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
