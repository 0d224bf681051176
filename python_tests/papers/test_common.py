"""examples.papers.common: tables between their marks, commands in result files, and freed memory."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.papers.common import results, tables
from examples.papers.common.held_out import HeldOutData

ROOT = Path(__file__).parents[2]


def test_a_table_stands_between_its_marks(tmp_path, monkeypatch):
    first = {"table": "Table 1", "row": "ours", "measure": "accuracy", "unit": "%", "paper": 91.5}
    second = {"table": "Table 2", "row": "chance", "measure": "rank", "unit": "", "paper": None}
    rows = [first | {"mean": 92.0, "std": 0.25, "seeds": 3}, second | {"mean": 1.5, "std": 0.0, "seeds": 1}]
    content = {"rows": rows, "machine": "a machine", "version": "0.1", "seconds": 12.4, "command": "python x.py"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(json.dumps(content))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- hebbkern bench: x -->\nold\n<!-- end of hebbkern bench: x -->\nafter\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    tables.main(["x", str(page)])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert "| ours | accuracy | 92.00 ± 0.25 % | 3 | 91.50 | +0.50 |" in lines
    assert "| chance | rank | 1.50 | 1 |  |  |" in lines
    assert lines.index("**Table 1**") < lines.index("**Table 2**")
    assert "a machine, hebbkern 0.1, 12 s. `python x.py`" in lines
    tables.main(["x", str(page), "--wide", "Table 1"])
    lines = page.read_text().splitlines()
    assert "| ours | 92.00 ± 0.25 % (91.50) | 3 |" in lines and "rank" not in page.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["krotov_cnn"],
        ["hebbcl"],
        ["hebbcl_time"],
        ["dhp_softmax", "--wide", "Table*", "Fig*", "Chosen*", "*protocols"],
        ["hebbian_cnn", "--wide", "Table*", "Soft*", "Time*"],
    ],
)
def test_the_tables_of_the_page_are_those_of_the_results(tmp_path, words):
    page = ROOT / "docs" / "results.md"
    (tmp_path / "page.md").write_text(page.read_text())
    tables.main([words[0], str(tmp_path / "page.md"), *words[1:]])
    assert (tmp_path / "page.md").read_text() == page.read_text()


def test_commands_are_without_folders():
    command = results.command("hebbcl.timing", ["--data", "/a/folder/mnist.npz", "--rounds", "2"])
    assert command == "python -m examples.papers.hebbcl.timing --data mnist --rounds 2"


def test_differences_have_a_standard_error():
    gain = results.difference([2.0, 4.0], [1.0, 1.0, 4.0])  # variances 2 and 3
    assert gain == {"points": 1.0, "standard_error": pytest.approx((2 / 2 + 3 / 3) ** 0.5)}
    assert results.difference([2.0], [1.0, 3.0])["standard_error"] is None


def test_the_test_set_is_read_once_by_each_row_and_seed():
    data = HeldOutData(*map(torch.tensor, range(4)))
    assert data.test("row", "variant", 0) == (2, 3)
    data.test("row", "variant", 1)
    with pytest.raises(AssertionError, match="row variant has seen the test set with seed 1"):
        data.test("row", "variant", 1)


@pytest.mark.slow(13)
def test_freed_memory_is_not_faulted_in_again():
    """A fifth layer's 38 MB are 9216 pages, and its gradient takes two such blocks; one step of nine reuses them."""
    count = """
import resource, torch
from examples.papers.common import memory
memory.keep()
layer, x = torch.nn.Linear(2304, 4096), torch.randn(8, 2304)
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    layer.zero_grad()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    pytest.importorskip("resource", reason="the system counts no page faults")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    command = [sys.executable, "-c", count]
    assert int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout) < 4000
