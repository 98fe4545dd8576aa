"""Checkpoints to measure with: random weights that never end an utterance by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwen3_tts_engine.tiny import PUBLISHED_0B6, SMALL, TINY, build
from report import ROOT, progress

HOME = ROOT / "checkpoints" / "bench"
SHAPES = {
    "tiny": replace(TINY, mean_frames=None),
    "small": replace(SMALL, mean_frames=None),
    "published-0.6b": PUBLISHED_0B6,
}


def build_endless(shape: str, task: str = "custom_voice") -> Path:
    """The directory of a task's checkpoint of that shape, written unless it is there already."""
    if not (HOME / shape / task).is_dir():
        progress(f"{shape}: building a {task} checkpoint")
    return build(HOME / shape, task, shape=SHAPES[shape])
