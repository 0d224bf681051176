"""compete against NumPy, eager torch and the floor: pytest bench/bench_compete.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("compete"))
def bench_compete(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
