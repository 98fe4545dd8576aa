"""What an operator may set, and what a checkpoint's JSON files mean."""

import json
from dataclasses import MISSING, fields

import pytest

from qwen3_tts_engine.config import (
    CHECKPOINT_VARIABLES,
    VARIABLES,
    BaseConfig,
    CheckpointConfig,
    EngineConfig,
)
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.checkpoint import resolve
from qwen3_tts_engine.model.config import (
    CodecConfig,
    PredictorConfig,
    SpeechConfig,
    TalkerConfig,
    read_codec_config,
    read_speech_config,
)
from qwen3_tts_engine.upstream import import_qwen_tts

HERE = {"checkpoint": "here"}


def test_parameters_become_the_types_of_their_fields():
    config = EngineConfig.from_parameters(
        {"checkpoint": "here", "slots": " 4 ", "flash_attention": "Yes", "dtype": " bfloat16\n"}
    )
    assert config == EngineConfig("here", slots=4, flash_attention=True, dtype="bfloat16")


@pytest.mark.parametrize(
    ("parameter", "complaint"),
    [
        ({"slot": "4"}, "unknown parameter 'slot'; did you mean 'slots'?"),
        ({"zzz": "4"}, "unknown parameter 'zzz'; known are checkpoint, speech_tokenizer, device,"),
        ({"slots": "many"}, "slots is 'many'; it must be a whole number or auto"),
        ({"slots": "1.5"}, "slots is '1.5'; it must be a whole number or auto"),
        ({"memory_budget_mb": "0"}, "memory_budget_mb is 0; it must be at least 1"),
        ({"max_frames": "1.5"}, "max_frames is '1.5'; it must be a whole number"),
        ({"slots": "0"}, "slots is 0; it must be at least 1"),
        ({"max_frames": "0"}, "max_frames is 0; it must be at least 1"),
        ({"max_text_tokens": "-1"}, "max_text_tokens is -1; it must be at least 8"),
        ({"profile": "fast"}, "profile is 'fast'; it must be one of latency, balanced, throughput"),
        ({"waiting_room": "-1"}, "waiting_room is -1; it must be at least 0"),
        ({"flash_attention": "maybe"}, "flash_attention is 'maybe'; it must be true or false"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of auto, "),
    ],
)
def test_a_parameter_that_means_nothing_is_refused_by_name(parameter, complaint):
    with pytest.raises(ConfigError) as refusal:
        EngineConfig.from_parameters(HERE | parameter)
    assert str(refusal.value).startswith(complaint)


def test_slots_and_their_budget_may_be_left_to_the_engine():
    config = EngineConfig.from_parameters(HERE | {"slots": "auto", "memory_budget_mb": "auto"})
    assert (config.slots, config.memory_budget_mb) == (None, None)


def test_a_model_without_a_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="checkpoint is not set"):
        resolve(EngineConfig.from_parameters({}).checkpoint, tmp_path)


def test_the_checkpoint_may_be_named_by_the_environment_alone():
    config = EngineConfig.from_parameters({}).overridden_by({"QWEN_TTS_BASE_MODEL": "there"}, "base")
    assert config.checkpoint == "there"


def test_parameters_in_capitals_are_tritons_own():
    assert EngineConfig.from_parameters(HERE | {"EXECUTION_ENV_PATH": "/env"}) == EngineConfig("here")


def test_nobody_has_to_wait_outside_the_slots():
    assert EngineConfig("here", waiting_room=0).waiting_room == 0


@pytest.mark.parametrize("task", CHECKPOINT_VARIABLES)
def test_the_environment_wins_over_parameters(task):
    environment = {
        CHECKPOINT_VARIABLES[task]: "there",
        "QWEN_TTS_TOKENIZER": "a/tokenizer",
        "CUDA_DEVICE": "cuda:1",
        "MODEL_DTYPE": "float32",
        "CODEC_DTYPE": "bfloat16",
        "MODEL_WEIGHTS": "int8",
        "USE_FLASH_ATTENTION": "1",
        "MODEL_PROFILE": "latency",
    }
    given = EngineConfig("here", slots=4, dtype="bfloat16")
    assert given.overridden_by(environment, task) == EngineConfig(
        "there",
        "a/tokenizer",
        "cuda:1",
        "float32",
        codec_dtype="bfloat16",
        weights="int8",
        flash_attention=True,
        slots=4,
        profile="latency",
    )


@pytest.mark.parametrize("kind", [EngineConfig, BaseConfig, CheckpointConfig])
@pytest.mark.parametrize("task", CHECKPOINT_VARIABLES)
def test_an_explicit_load_wins_over_parameters_and_the_environment(kind, task):
    environment = {CHECKPOINT_VARIABLES[task]: "there", "CUDA_DEVICE": "cuda:1"}
    assert kind.read(HERE, environment, task) == kind("there", device="cuda:1")
    loaded = HERE | {"loaded_checkpoint": "yonder"}
    assert kind.read(loaded, environment, task) == kind("yonder", device="cuda:1")


def test_a_variable_that_is_empty_or_anothers_changes_nothing():
    given = EngineConfig("here", dtype="bfloat16")
    environment = {"QWEN_TTS_BASE_MODEL": "there", "MODEL_DTYPE": "", "PATH": "/bin"}
    assert given.overridden_by(environment, "custom_voice") == given


def test_a_variable_is_checked_like_a_parameter():
    with pytest.raises(ConfigError, match="flash_attention is 'maybe'"):
        EngineConfig("here").overridden_by({"USE_FLASH_ATTENTION": "maybe"}, "base")


@pytest.mark.parametrize(
    ("variable", "value", "field", "read"),
    [
        ("MODEL_DTYPE", "Float16", "dtype", "float16"),
        ("MODEL_DTYPE", "BFLOAT16", "dtype", "bfloat16"),
        ("USE_FLASH_ATTENTION", "on", "flash_attention", True),
        ("USE_FLASH_ATTENTION", "Off", "flash_attention", False),
        ("MODEL_PROFILE", "Latency", "profile", "latency"),
    ],
)
def test_a_choice_is_read_in_any_case(variable, value, field, read):
    assert getattr(EngineConfig("here").overridden_by({variable: value}, "base"), field) == read


def test_every_variable_sets_a_field():
    assert set(VARIABLES.values()) <= {f.name for f in fields(BaseConfig)}


# --- a checkpoint's JSON ----------------------------------------------------------------------------------


def upstream_defaults(ours):
    """Upstream's configuration of the same thing, made from nothing."""
    import_qwen_tts()
    from qwen_tts.core.models import configuration_qwen3_tts as talker
    from qwen_tts.core.tokenizer_12hz import configuration_qwen3_tts_tokenizer_v2 as codec

    return {
        PredictorConfig: talker.Qwen3TTSTalkerCodePredictorConfig,
        TalkerConfig: talker.Qwen3TTSTalkerConfig,
        SpeechConfig: talker.Qwen3TTSConfig,
        CodecConfig: codec.Qwen3TTSTokenizerV2DecoderConfig,
    }[ours]()


@pytest.mark.parametrize("ours", [PredictorConfig, TalkerConfig, SpeechConfig, CodecConfig])
def test_what_a_file_leaves_out_is_what_upstream_would_take(ours):
    theirs = upstream_defaults(ours)
    set_by_files = {name for name in ("head_dim", "text_vocab_size") if not hasattr(theirs, name)}
    with_default = {f.name: f.default for f in fields(ours) if f.default is not MISSING}
    compared = with_default.keys() - {"code_predictor_config"} - set_by_files
    assert len(compared) >= 5
    assert {name: with_default[name] for name in compared} == {
        name: getattr(theirs, name) for name in compared
    }


@pytest.fixture
def raw(tiny_checkpoints):
    """config.json of the tiny CustomVoice checkpoint, free to change."""
    return json.loads((tiny_checkpoints / "custom_voice" / "config.json").read_text())


@pytest.fixture
def raw_codec(tiny_checkpoints):
    return json.loads((tiny_checkpoints / "custom_voice" / "speech_tokenizer" / "config.json").read_text())


def test_a_talker_without_a_head_size_divides_its_width_among_its_heads(raw):
    del raw["talker_config"]["head_dim"]
    raw["talker_config"].update(hidden_size=96, num_attention_heads=4)
    assert read_speech_config(raw).talker.head_dim == 24


def test_a_codec_without_a_head_size_divides_its_width_among_its_heads(raw_codec):
    decoder = raw_codec["decoder_config"]
    decoder.pop("head_dim", None)
    decoder.update(hidden_size=96, num_attention_heads=4)
    assert read_codec_config(raw_codec).head_dim == 24


def test_speakers_come_in_the_checkpoints_order_and_lower_case(raw):
    raw["talker_config"]["spk_id"] = {"Zoe": 1, "adam": 2}
    assert read_speech_config(raw).speakers == ("zoe", "adam")


def test_only_speakers_with_a_dialect_have_one(raw):
    assert read_speech_config(raw).speaker_dialects == {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}


def test_a_caller_may_name_every_language_and_no_dialect(raw):
    languages = read_speech_config(raw).languages
    assert languages[:3] == ("Auto", "Chinese", "English")
    assert len(languages) == 11
    assert not any("dialect" in name.lower() for name in languages)


@pytest.mark.parametrize("absent", [None, {}])
def test_a_checkpoint_need_not_have_speakers(raw, absent):
    raw["talker_config"].update(spk_id=absent, spk_is_dialect=absent)
    assert read_speech_config(raw).speakers == ()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "qwen3"}, "model_type is 'qwen3'; this engine speaks 'qwen3_tts' checkpoints"),
        (
            {"tokenizer_type": "qwen3_tts_tokenizer_25hz"},
            "tokenizer_type is 'qwen3_tts_tokenizer_25hz'; only 'qwen3_tts_tokenizer_12hz' is served",
        ),
    ],
)
def test_another_architecture_is_refused_by_name(raw, change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_speech_config(raw | change)


@pytest.mark.parametrize("option", ["attention_bias", "use_sliding_window"])
@pytest.mark.parametrize("part", ["talker", "code predictor"])
def test_attention_this_engine_has_no_code_for_is_refused(raw, option, part):
    talker = raw["talker_config"]
    (talker if part == "talker" else talker["code_predictor_config"])[option] = True
    with pytest.raises(ConfigError, match=option):
        read_speech_config(raw)


@pytest.mark.parametrize("key", ["tts_model_type", "tts_model_size", "talker_config"])
def test_a_config_json_that_lacks_what_every_checkpoint_has_is_refused(raw, key):
    del raw[key]
    with pytest.raises(ConfigError, match=key):
        read_speech_config(raw)
