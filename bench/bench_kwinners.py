"""kwinners against NumPy, eager torch and the floor: pytest bench/bench_kwinners.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("kwinners"))
def bench_kwinners(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
