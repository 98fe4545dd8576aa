"""The built-in speakers as upstream publishes them, and which checkpoint made a voice."""

import re
from dataclasses import astuple
from importlib.metadata import metadata
from pathlib import Path

import pytest

from qwen3_tts_engine.model.config import SpeechConfig, TalkerConfig
from qwen3_tts_engine.voices.maker import identify
from qwen3_tts_engine.voices.speakers import CATALOGUE, Speaker, describe


def test_the_catalogue_is_upstreams():
    readme = metadata("qwen-tts").get_payload()
    table = re.search(r"\| Speaker \|.*\n\|[- |]*\n((\|.*\n)+)", readme)
    rows = [tuple(cell.strip() for cell in row.strip("|\n").split("|")) for row in table[1].splitlines()]
    assert [astuple(speaker) for speaker in CATALOGUE] == rows


def test_speakers_come_in_the_checkpoints_order():
    assert [speaker.name for speaker in describe(["uncle_fu", "ryan"])] == ["Uncle_Fu", "Ryan"]


def test_a_speaker_upstream_does_not_know_has_only_a_name():
    assert describe(["zoe"]) == [Speaker("zoe", "", "")]


@pytest.fixture
def config() -> SpeechConfig:
    talker = TalkerConfig(intermediate_size=1, hidden_size=2048)
    return SpeechConfig(talker, "base", "1b7", {}, {}, {})


def checkpoint(directory: Path, text: str = "{}") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(text)
    return directory


def test_a_checkpoint_of_the_hub_is_known_by_its_name_and_revision(tmp_path, config):
    snapshots = tmp_path / "models--Qwen--Qwen3-TTS-12Hz-1.7B-Base" / "snapshots"
    directory = checkpoint(snapshots / "5d83992436ea0123456789abcdef0123456789ab")
    expected = "qwen3_tts 1b7 base (2048 values) Qwen/Qwen3-TTS-12Hz-1.7B-Base@5d83992436ea"
    assert identify(directory, config) == expected


def test_any_other_is_known_by_its_configuration(tmp_path, config):
    here, copy = (identify(checkpoint(tmp_path / name), config) for name in ("here", "copy"))
    assert re.fullmatch(r"qwen3_tts 1b7 base \(2048 values\) config [0-9a-f]{12}", here)
    assert here == copy
    assert here != identify(checkpoint(tmp_path / "other", '{"other": 1}'), config)
