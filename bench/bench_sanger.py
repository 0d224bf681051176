"""sanger against NumPy, eager torch and the floor: pytest bench/bench_sanger.py"""

import pytest

from contest import contestants


@pytest.mark.parametrize(("case", "who"), contestants("sanger"))
def bench_sanger(benchmark, checked, case, who):
    benchmark(checked(case)[who][0])
