"""Every benchmark runs from its command line and leaves a report, in the smallest form it has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_tts_engine.launch.server import Server
from real_server import ROOT

# Threads that wait without spinning: test processes run side by side.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def run(results: Path, script: str, arguments: str = "") -> dict[str, object]:
    """The figures of its report."""
    command = [sys.executable, str(ROOT / "perf" / script), *arguments.split(), "--results", str(results)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [written] = results.glob("*.json")
    report = written.with_suffix(".md").read_text()
    assert report.startswith("# ")
    assert done.stdout.strip() == report.strip()
    document: dict[str, object] = json.loads(written.read_text())
    return document


def test_the_engine_against_upstream(tmp_path: Path) -> None:
    document = run(tmp_path, "bench.py", "--shapes tiny --rounds 1 --frames 2 --threads 1")
    [shape] = document["shapes"]
    assert {figure["lengths"] for figure in shape["engine_times_as_fast_as"]} == {
        "equal lengths",
        "ragged lengths",
    }
    assert all(agreement["equal_frames"] == agreement["frames"] for agreement in shape["agreement"])


def test_the_codec_alone(tmp_path: Path) -> None:
    document = run(tmp_path, "codec.py", "--shape tiny --rounds 1 --threads 1")
    exact = {chunk["chunk"]: chunk["largest_difference"] for chunk in document["chunks"][::3]}
    assert exact.keys() == {0, 1, 4, 8, 12}
    assert max(exact.values()) < 1e-5
    assert list(tmp_path.glob("*.svg"))


def test_the_distance_to_the_limit(tmp_path: Path) -> None:
    small = "--shape tiny --dtype float32 --rounds 1 --threads 1 --read-bytes 67108864"
    document = run(tmp_path, "limit.py", small)
    assert all(0 < reached["share"]["median"] < 1 for reached in document["reached"])


@pytest.mark.triton
def test_callers_who_start_together(server: Server, tmp_path: Path) -> None:
    url = f"127.0.0.1:{server.grpc_port}"
    document = run(tmp_path, "load.py", f"--url {url} --callers 2 --rounds 1 --max-frames 1")
    assert [load["callers"] for load in document["loads"]] == [1, 2]


@pytest.mark.triton
def test_callers_who_come_at_random(tmp_path: Path) -> None:
    document = run(tmp_path, "arrivals.py", "--duration-s 1 --frames 4 --fractions 0.25")
    [load] = document["loads"]
    assert load["callers"] > 0
    assert load["rejected"] == 0


@pytest.mark.triton
def test_what_serving_promises(tmp_path: Path) -> None:
    document = run(tmp_path, "promises.py", "--shape tiny --rounds 1 --short")
    assert document["findings"] == {}  # a short run shows nothing about the claims
    assert "triton, in process" in document["measured"]


def test_the_claims_of_all_results(tmp_path: Path) -> None:
    document = run(tmp_path, "claims.py")
    assert {claim["verdict"] for claim in document["claims"]} == {"not measured"}
