import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_tts_engine import tiny
from qwen3_tts_engine.upstream import import_qwen_tts

FRAME = 1920  # samples
SECOND = 24_000
FRAME_CAP = 200


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    out = tmp_path_factory.mktemp("checkpoints")
    tiny.build_all(out)
    return out


def load(path: Path):
    return import_qwen_tts().Qwen3TTSModel.from_pretrained(str(path))


def say(model, texts: list[str], max_frames: int, seed: int = 0) -> list[np.ndarray]:
    torch.manual_seed(seed)
    # Upstream leaves the last frame of its budget unfinished and drops it.
    common = {"text": texts, "language": "English", "max_new_tokens": max_frames + 1}
    match model.model.tts_model_type:
        case "custom_voice":
            wavs, sample_rate = model.generate_custom_voice(speaker="vivian", **common)
        case "voice_design":
            wavs, sample_rate = model.generate_voice_design(instruct="A warm, low voice.", **common)
        case "base":
            noise = np.random.default_rng(0).normal(0, 0.1, SECOND).astype(np.float32)
            voice = model.create_voice_clone_prompt(ref_audio=(noise, SECOND), ref_text="Hello world.")
            wavs, sample_rate = model.generate_voice_clone(voice_clone_prompt=voice * len(texts), **common)
    assert sample_rate == SECOND
    return wavs


def tokens(path: Path, text: str) -> list[str]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), fix_mistral_regex=True).tokenize(text)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def wide_vocabulary() -> tiny.Shape:
    return replace(tiny.TINY, text_vocab=100_352, tokenizer_vocab=100_352)


@pytest.mark.parametrize("name", tiny.CHECKPOINTS)
def test_every_checkpoint_loads_in_upstream_and_speaks(checkpoints, name):
    [wav] = say(load(checkpoints / name), ["Hello world."], max_frames=4)
    assert 2 * FRAME <= len(wav) <= 4 * FRAME


@pytest.mark.parametrize(
    ("name", "size", "has_projection"), [("custom_voice", "1b7", True), ("custom_voice_0b6", "0b6", False)]
)
def test_only_the_larger_size_projects_into_its_code_predictor(checkpoints, name, size, has_projection):
    model = load(checkpoints / name).model
    assert model.tts_model_size == size
    assert bool(list(model.talker.code_predictor.small_to_mtp_projection.parameters())) is has_projection


def test_utterances_end_by_themselves_and_are_neither_silent_nor_clipped(checkpoints):
    wavs = say(load(checkpoints / "custom_voice"), [f"Test number {i}." for i in range(16)], FRAME_CAP)
    lengths = [len(wav) / FRAME for wav in wavs]
    assert 12 < np.mean(lengths) < 48
    assert len(set(lengths)) > 8
    assert max(lengths) < FRAME_CAP

    audio = np.concatenate(wavs)
    assert 0.05 < audio.std() < 0.3
    assert np.mean(np.abs(audio) >= 1) < 1e-3


def test_the_same_seed_writes_the_same_bytes(checkpoints, tmp_path):
    assert contents(tiny.build(tmp_path, "base")) == contents(checkpoints / "base")


def test_another_seed_speaks_differently(checkpoints, tmp_path):
    other = contents(tiny.build(tmp_path, "custom_voice", seed=5))
    default = contents(checkpoints / "custom_voice")
    assert other.keys() == default.keys()
    differing = {name for name in default if other[name] != default[name]}
    assert differing == {"model.safetensors", "speech_tokenizer/model.safetensors", "tiny.json"}


def test_two_checkpoints_of_a_seed_differ_in_the_talker_and_share_the_codec(checkpoints):
    custom, design = contents(checkpoints / "custom_voice"), contents(checkpoints / "voice_design")
    assert custom["model.safetensors"] != design["model.safetensors"]
    assert custom["speech_tokenizer/model.safetensors"] == design["speech_tokenizer/model.safetensors"]


def test_everyone_may_read_a_checkpoint(checkpoints):
    for entry in checkpoints.rglob("*"):
        assert entry.stat().st_mode & 0o777 == (0o755 if entry.is_dir() else 0o644)


def test_the_callers_random_numbers_and_threads_stay_as_they_were(tmp_path):
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    tiny.build(tmp_path, "voice_design")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_complete_checkpoint_is_kept_and_a_stale_one_replaced(tmp_path):
    path = tiny.build(tmp_path, "custom_voice")
    (path / "note").touch()

    tiny.build(tmp_path, "custom_voice")
    assert (path / "note").exists()

    (path / "tiny.json").write_text(json.dumps({"recipe": 0}))
    tiny.build(tmp_path, "custom_voice")
    assert not (path / "note").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["custom_voice"]


def test_a_failed_build_leaves_what_was_there(tmp_path, monkeypatch):
    path = tiny.build(tmp_path, "custom_voice")
    before = contents(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tiny, "write_codec", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny.build(tmp_path, "custom_voice", seed=5)
    assert contents(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["custom_voice"]


def test_the_prompts_fixed_pieces_are_one_token_each(checkpoints):
    cut = tokens(
        checkpoints / "custom_voice", "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert cut[:3] == ["<|im_start|>", "assistant", "Ċ"]
    assert cut[-5:] == ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"]


def test_a_large_vocabulary_is_cut_the_way_transformers_patches_it(checkpoints, tmp_path):
    large = tiny.build(tmp_path, "custom_voice", shape=wide_vocabulary())
    assert tokens(checkpoints / "custom_voice", "McDonald") == ["McDonald"]
    assert "".join(tokens(large, "McDonald")) == "McDonald"
    assert len(tokens(large, "McDonald")) > 1
    [wav] = say(load(large), ["McDonald bought an iPhone."], max_frames=4)
    assert len(wav) >= 2 * FRAME


def test_more_tokens_than_embedding_rows_are_refused():
    with pytest.raises(ValueError, match="rows of text embedding"):
        replace(tiny.TINY, tokenizer_vocab=100_352)


def test_the_published_shapes_have_the_published_number_of_parameters():
    from qwen3_tts_engine.tiny.talker import empty_model, tts_config

    control_ids = dict.fromkeys(
        ["<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"], 0
    )
    with torch.device("meta"):
        model = empty_model(tts_config("custom_voice", control_ids, tiny.PUBLISHED_1B7), "bfloat16")
    assert sum(tensor.numel() for tensor in model.parameters()) == 1_916_676_352
