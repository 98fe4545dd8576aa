"""`make demo`, the first thing that anybody runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from listening import SAMPLE_RATE, decoded
from real_server import ROOT


@pytest.mark.triton
def test_the_demo_speaks_for_every_task_and_through_the_gateway(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "perf" / "demo.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert [line.split()[0] for line in told] == ["custom_voice", "voice_design", "base", "gateway"]
    for file in ("custom_voice.wav", "voice_design.wav", "base.wav", "gateway.mp3"):
        heard = (tmp_path / "out" / file).read_bytes()
        assert len(decoded(heard, file[-3:])) > SAMPLE_RATE
