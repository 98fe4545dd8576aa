"""Checkpoints on disk: what is found, what is read, and what is refused before it could be heard."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.checkpoint import Checkpoint, Weights, resolve
from qwen3_tts_engine.request import GenerationDefaults, Sampling

CPU = torch.device("cpu")


def weights(**tensors):
    loaders = {name.replace("__", "."): (lambda tensor=tensor: tensor) for name, tensor in tensors.items()}
    return Weights(loaders, torch.float32, CPU)


@pytest.fixture
def copy_of(tiny_checkpoints, tmp_path):
    """A tiny checkpoint of the test's own, to break."""

    def copy(name="custom_voice"):
        return Path(shutil.copytree(tiny_checkpoints / name, tmp_path / name))

    return copy


def read_all_of(checkpoint):
    checkpoint.generation_defaults()
    checkpoint.talker_weights(torch.float32, CPU)
    checkpoint.codec_weights(torch.float32, CPU)


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- tensors ----------------------------------------------------------------------------------------------


def test_a_taken_tensor_is_contiguous_and_of_the_dtype_asked_for():
    taken = weights(a=torch.ones(2, 3, dtype=torch.bfloat16).T).take("a")
    assert taken.is_contiguous()
    assert (taken.dtype, taken.shape) == (torch.float32, (3, 2))


def test_a_tensor_that_is_missing_or_already_taken_is_named():
    loaded = weights(a=torch.ones(1))
    loaded.take("a")
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match=f"the checkpoint has no tensor '{name}'"):
            loaded.take(name)


def test_a_module_takes_the_tensors_below_its_prefix_and_nobody_else_can():
    loaded = weights(a__x=torch.zeros(1), a__y=torch.ones(1), ab=torch.ones(1))
    module = loaded.below("a.")
    assert module.has("x")
    assert not loaded.has("a.x")
    assert module.take("y") == 1
    assert loaded.has("ab")


def test_a_forgotten_tensor_is_found_however_deep_it_lies():
    loaded = weights(a__b__c=torch.ones(1), d=torch.ones(1))
    loaded.take("d")
    deep = loaded.below("a.").below("b.")
    with pytest.raises(ConfigError, match="the checkpoint has unexpected tensors: c"):
        loaded.expect_taken()
    deep.take("c")
    loaded.expect_taken()


def test_what_is_ignored_is_not_forgotten():
    loaded = weights(a=torch.ones(1))
    loaded.ignore("a")
    loaded.ignore("never there")
    loaded.expect_taken()


@pytest.mark.parametrize("name", ["custom_voice", "custom_voice_0b6", "voice_design", "base"])
def test_every_tensor_of_every_checkpoint_has_its_place(load_engine, name):
    load_engine(name)


@pytest.mark.parametrize("file", ["model.safetensors", "speech_tokenizer/model.safetensors"])
def test_a_tensor_without_a_place_is_refused_by_name(load_engine, copy_of, file):
    path = copy_of()
    part = "decoder" if "/" in file else "talker"
    save_file(load_file(path / file) | {f"{part}.extra": torch.ones(1)}, path / file)
    with pytest.raises(ConfigError, match="the checkpoint has unexpected tensors: extra"):
        Engine.load(EngineConfig(str(path)), "custom_voice", base=path)


def test_shards_are_read_through_their_index(copy_of):
    path = copy_of()
    whole = Checkpoint(path).talker_weights(torch.float32, CPU).take("codec_head.weight")
    (path / "model.safetensors").unlink()
    save_file({"talker.codec_head.weight": whole}, path / "model-00001-of-00002.safetensors")
    save_file({"talker.other": torch.ones(1)}, path / "model-00002-of-00002.safetensors")
    shards = {
        "talker.codec_head.weight": "model-00001-of-00002.safetensors",
        "talker.other": "model-00002-of-00002.safetensors",
    }
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    sharded = Checkpoint(path).talker_weights(torch.float32, CPU)
    assert torch.equal(sharded.take("codec_head.weight"), whole)
    assert sharded.take("other") == 1


# --- a directory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["custom_voice", "custom_voice_0b6", "voice_design", "base"])
def test_every_checkpoint_knows_its_task(tiny_checkpoints, name):
    checkpoint = Checkpoint(tiny_checkpoints / name)
    task = name.removesuffix("_0b6")
    checkpoint.expect_task(task)
    other = "base" if task != "base" else "custom_voice"
    with pytest.raises(ConfigError, match=rf"{name} is a {task} checkpoint; this model needs {other}"):
        checkpoint.expect_task(other)


def test_sampling_defaults_are_the_checkpoints_own(copy_of):
    path = copy_of()
    (path / "generation_config.json").write_text(
        json.dumps(
            {
                "do_sample": False,
                "temperature": 0.5,
                "top_k": 5,
                "top_p": 0.55,
                "repetition_penalty": 1.5,
                "subtalker_dosample": False,
                "subtalker_temperature": 0.6,
                "subtalker_top_k": 6,
                "subtalker_top_p": 0.66,
                "max_new_tokens": 8192,
            }
        )
    )
    assert Checkpoint(path).generation_defaults() == GenerationDefaults(
        Sampling(do_sample=False, temperature=0.5, top_k=5, top_p=0.55),
        Sampling(do_sample=False, temperature=0.6, top_k=6, top_p=0.66),
        repetition_penalty=1.5,
    )


def test_sampling_a_checkpoint_does_not_set_is_upstreams(copy_of):
    path = copy_of()
    (path / "generation_config.json").write_text('{"top_k": 7}')
    assert Checkpoint(path).generation_defaults() == GenerationDefaults(talker=Sampling(top_k=7))


@pytest.mark.parametrize(
    "file", ["config.json", "speech_tokenizer/config.json", "model.safetensors", "generation_config.json"]
)
def test_a_missing_file_is_named(copy_of, file):
    path = copy_of()
    (path / file).unlink()
    with pytest.raises(ConfigError, match=rf"the checkpoint has no file .*{file}"):
        read_all_of(Checkpoint(path))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "speech_tokenizer/config.json"])
def test_a_file_that_is_no_json_is_named(copy_of, file):
    path = copy_of()
    (path / file).write_text("{broken")
    with pytest.raises(ConfigError, match=f"{file} is not valid JSON"):
        read_all_of(Checkpoint(path))


@pytest.mark.parametrize("file", ["model.safetensors", "speech_tokenizer/model.safetensors"])
def test_a_truncated_file_is_named(copy_of, file):
    path = copy_of()
    (path / file).write_bytes((path / file).read_bytes()[:1000])
    with pytest.raises(ConfigError, match=file):
        read_all_of(Checkpoint(path))


def test_a_shard_that_was_not_downloaded_is_named(copy_of):
    path = copy_of()
    index = {"weight_map": {"talker.a": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="model-00001-of-00002"):
        read_all_of(Checkpoint(path))


def test_another_speech_tokenizer_of_the_same_dimensions_replaces_the_own(tiny_checkpoints, copy_of):
    replacement = copy_of("base") / "speech_tokenizer"
    save_file({"decoder.a": torch.full((1,), 7.0)}, replacement / "model.safetensors")
    checkpoint = Checkpoint(tiny_checkpoints / "custom_voice", replacement)
    assert checkpoint.codec_weights(torch.float32, CPU).take("a") == 7


def test_a_speech_tokenizer_of_other_dimensions_is_refused(tiny_checkpoints, copy_of):
    replacement = copy_of("base") / "speech_tokenizer"
    config = replacement / "config.json"
    rewrite(config, decoder_config=json.loads(config.read_text())["decoder_config"] | {"hidden_size": 48})
    with pytest.raises(ConfigError, match="speech_tokenizer does not have the dimensions of"):
        Checkpoint(tiny_checkpoints / "custom_voice", replacement)


# --- finding it -------------------------------------------------------------------------------------------


def test_a_relative_directory_starts_where_the_model_is(tmp_path):
    model, checkpoint = tmp_path / "models" / "talker", tmp_path / "checkpoints" / "tiny"
    for directory in (model, checkpoint):
        directory.mkdir(parents=True)
    assert resolve("../../checkpoints/tiny", model) == checkpoint.resolve()


def test_an_absolute_directory_and_the_home_directory_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tiny").mkdir()
    elsewhere = Path("/nowhere")
    assert resolve(str(tmp_path / "tiny"), elsewhere) == (tmp_path / "tiny").resolve()
    assert resolve("~/tiny", elsewhere) == (tmp_path / "tiny").resolve()


@pytest.mark.parametrize("name", ["tiny", "../tiny", "./a/b", "~/a/b", "/a/b", "a/b/c", "a/"])
def test_a_directory_that_is_not_there_and_no_hub_id_is_refused_by_its_path(tmp_path, name):
    with pytest.raises(ConfigError, match="there is no checkpoint directory /"):
        resolve(name, tmp_path)


def test_a_name_the_hub_cannot_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such/repo--name"):
        resolve("no such/repo--name", tmp_path)


OFFLINE = """
from pathlib import Path
from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.checkpoint import resolve

print(resolve("someone/speech", Path("/nowhere")))
try:
    resolve("someone/else", Path("/nowhere"))
except ConfigError as error:
    print(error)
"""


def test_a_hub_id_is_its_snapshot_directory_or_cannot_be_fetched(tmp_path):
    repository = tmp_path / "hub" / "models--someone--speech"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    # In a process of its own: huggingface_hub reads the environment when it is imported.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    printed = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == str(snapshot)
    assert printed[1].startswith("'someone/else' is no directory here and cannot be fetched")
