"""accumulate against NumPy, eager torch and the floor: pytest bench/bench_accumulate.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("accumulate"))
def bench_accumulate(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
