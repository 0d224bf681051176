"""`hebbkern bench`: what computes another result is not timed, and the table reports what was measured."""

import json
from dataclasses import dataclass

import pytest
import torch

import hebbkern as hk
from hebbkern import benchmark
from hebbkern.benchmark import CASES, report, timing
from hebbkern.benchmark.case import Case, Implementation
from hebbkern.benchmark.cases import default_cases
from hebbkern.benchmark.operators import accumulate_case, apply_case, kwinners_case, operator_case
from hebbkern.benchmark.steps import rule_case
from hebbkern.cli import bench


def doubled(factor):
    """A case in which hebbkern returns [2 * factor], all other implementations [2.0]."""

    def build():
        two = torch.full((1,), 2.0)
        runs = {"hebbkern": lambda: two * factor, "numpy": two.numpy, "eager": two.clone, "forward": two.clone}
        return {name: Implementation(run) for name, run in runs.items()}

    return Case("compete", "two", build, "a copy", limits={"numpy": 1e-9, "forward": 1e9})


def test_a_wrong_result_is_not_timed():
    with pytest.raises(AssertionError, match=r"compete: two: hebbkern differs from NumPy by 1.0e-02 of its norm"):
        timing.measure(doubled(1.01), rounds=1)


IMAGES = (4, 3, 6, 6), (5, 3, 3, 3)
SMALL = [
    operator_case("compete", (16, 30), (20, 30), k=3),
    operator_case("nearest_patch", *IMAGES),
    operator_case("dense_update", *IMAGES),
    accumulate_case(*IMAGES, 2),
    apply_case(20, 30),
    kwinners_case((4, 6, 5, 5), 2),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_a_row_holds_every_ratio(case):
    row = timing.measure(case, rounds=2)
    seconds, ratios = row["seconds"], row["ratios"]
    assert ratios["numpy"] == seconds["numpy"] / seconds["hebbkern"]
    assert ratios["forward"] == seconds["hebbkern"] / seconds["forward"]


@dataclass(frozen=True)
class Instar(hk.Oja):
    """A rule that no other file knows."""


def test_a_rule_without_a_case_gets_one():
    assert default_cases([hk.WTA, hk.Oja]) == ()
    (case,) = default_cases([hk.WTA, Instar])
    assert case.id == "rules: Instar step, 1024 x 784 x 2000" and case.forward_pass == "forward"


@pytest.mark.parametrize("reference", [None, hk.reference.oja])
def test_a_rule_without_a_formulation_is_compared_with_eager_and_the_reference(reference, monkeypatch):
    if reference:
        monkeypatch.setattr(hk.reference, "instar", reference, raising=False)
    row = timing.measure(rule_case(Instar(), *IMAGES), rounds=1)
    assert row["seconds"].keys() == {"hebbkern", "eager", "forward"} | ({"numpy"} if reference else set())
    assert report.text({"peers": False, "rows": [row], "properties": [], **benchmark.about()})


@pytest.mark.parametrize(
    "stem", ["compete", "nearest_patch", "accumulate", "dense_update", "apply", "kwinners", "rules"]
)
def test_every_stem_has_cases(stem):
    assert [case for case in CASES if case.stem == stem]


def test_case_names_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


def test_command_writes_the_table_and_says_which_limit_fails(monkeypatch, tmp_path, capsys):
    missed = Case("compete", "slow", doubled(1.0).build, "a copy", limits={"numpy": 1e9})
    monkeypatch.setattr(benchmark, "CASES", (doubled(1.0), missed))
    for name in ("memory", "overhead", "scaling", "determinism"):
        monkeypatch.setattr(benchmark.properties, name, lambda *_: [])
    page, (start, end) = tmp_path / "README.md", report.marks()
    page.write_text(f"before\n{start}\nstale\n{end}\nafter\n")
    files = ["--json", str(tmp_path / "bench.json"), "--markdown", str(page)]
    assert bench.main(["--rounds", "1", "--strict", *files]) == 1
    assert bench.main(["--rounds", "1", "--strict", "--only", "two"]) == 0
    printed = capsys.readouterr().out
    assert "forward pass ≤ 1e+09 holds" in printed and "NumPy ≥ 1e+09 FAILS" in printed
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert "stale" not in page.read_text() and "| compete: two |" in page.read_text()
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 2


def test_a_page_without_a_place_for_the_table_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        report.put_between_marks("nothing here", "table")
