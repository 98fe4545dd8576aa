"""perf/gpu_check.py, rehearsed where there is no GPU, so that it runs where there is one."""

import os
import subprocess
import sys

import pytest
import torch

from real_server import ROOT


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "perf/gpu_check.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_2() -> None:
    checked = gpu_check()
    assert checked.returncode == 2
    assert "needs a GPU that torch can use" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_a_rehearsal_compares_and_measures_everything_and_leaves_no_result() -> None:
    results = ROOT / "perf" / "results"
    before = set(results.iterdir())
    checked = gpu_check("--device", "cpu")
    assert checked.returncode == 0, checked.stderr
    assert "| upstream, float32, greedy | 5 of 5 |" in checked.stdout
    assert "| replayed against eager, float32, sampled | 20 of 20 | 0.0e+00 | held |" in checked.stdout
    for batch in (1, 2):
        for who in ("replayed", "eager", "upstream, static batch"):
            assert f"| {batch} | {who} |" in checked.stdout
    assert not {file for file in set(results.iterdir()) - before if "gpu" in file.name}
