"""apply_ against NumPy, eager torch and the floor: pytest bench/bench_apply.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("apply"))
def bench_apply(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
