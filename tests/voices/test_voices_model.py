"""The model `voices`: its model.py and config.pbtxt, with a stand-in for Triton around them."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup, ModelQueuePolicy

from fakes import triton_python_backend_utils as pb_utils
from fakes.triton_python_backend_utils import TritonError
from python_backend import (
    MODEL_REPOSITORY,
    as_tensor,
    code_and_words,
    declared_outputs,
    load_model_py,
    read_config,
)
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.triton.voices import OPERATIONS, VARIABLES, VoicesConfig
from qwen3_tts_engine.voices.mixing import resolve_voice
from qwen3_tts_engine.voices.store import open_store

DIRECTORY = MODEL_REPOSITORY / "voices"
CONFIG = read_config(DIRECTORY)
TYPES = {tensor.name: DataType.Name(tensor.data_type) for tensor in CONFIG.input}
WORDS = "This is what I sound like."
SPEAKERS = ["Serena", "Vivian", "Uncle_Fu", "Ryan", "Aiden", "Ono_Anna", "Sohee", "Eric", "Dylan"]
LANGUAGES = [
    *("Auto", "Chinese", "English", "German", "Italian", "Portuguese"),
    *("Spanish", "Japanese", "Korean", "French", "Russian"),
]
HIDDEN_SIZE = 64
EMBEDDING = np.linspace(-1, 1, HIDDEN_SIZE, dtype=np.float32)[None]  # a row
CODES = np.arange(48, dtype=np.int32).reshape(1, 3, 16)
X_VECTOR = {"speaker_embedding": EMBEDDING}
RECORDING = {"speaker_embedding": EMBEDDING, "ref_codes": CODES, "ref_text": [WORDS]}
MADE = {"created_at": ["2025-03-04T05:06:07.008+00:00"], "model": ["qwen3_tts 1b7 base (64 values) config 0"]}
PROMPT_OUTPUTS = {"speaker_embedding", "ref_codes", "ref_text"}


class HostedVoices:
    """The model between `initialize` and the end of the test."""

    def __init__(self, **parameters: str) -> None:
        config = MessageToDict(CONFIG, preserving_proto_field_name=True)
        config["parameters"] |= {name: {"string_value": value} for name, value in parameters.items()}
        self.model = load_model_py(DIRECTORY).TritonPythonModel()
        self.model.initialize(
            {
                "model_name": "voices",
                "model_version": "1",
                "model_repository": str(DIRECTORY),
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
                "model_config": json.dumps(config),
            }
        )

    def ask(self, operation: str, **inputs: Any) -> Any:
        """The JSON of the answer."""
        return json.loads(self.outputs(operation=[operation], **inputs)["result"][0])

    def outputs(self, **inputs: Any) -> dict[str, np.ndarray]:
        """The answer's tensors, the batch axis taken off."""
        response = self._execute(inputs)
        assert not response.has_error(), response.error().message()
        arrays = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        declared = declared_outputs(CONFIG)
        assert [declared[name].complaint(array) for name, array in arrays.items()] == [None] * len(arrays)
        return {name: array[0] for name, array in arrays.items()}

    def error(self, **inputs: Any) -> tuple[int, str]:
        """The code and the message of the answer."""
        response = self._execute(inputs)
        assert response.has_error()
        return code_and_words(response.error())

    def _execute(self, inputs: dict[str, Any]) -> pb_utils.InferenceResponse:
        tensors = [as_tensor(name, TYPES[name], value) for name, value in inputs.items()]
        [response] = self.model.execute([pb_utils.InferenceRequest(tensors, pb_utils.ResponseSender({}))])
        return response


@pytest.fixture
def host(
    tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., HostedVoices]:
    """`host(voice_store="redis://…")`: the model with that parameter, by default a directory."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    parameters = {
        "voice_store": str(tmp_path / "voices"),
        "checkpoint": str(tiny_checkpoints / "custom_voice"),
        "base_checkpoint": str(tiny_checkpoints / "base"),
    }
    return lambda **given: HostedVoices(**parameters | given)


@pytest.fixture
def voices(host: Callable[..., HostedVoices]) -> HostedVoices:
    return host()


@pytest.mark.parametrize("name", ["nmae", "created-at"])
def test_a_json_key_that_is_no_input_is_refused(voices: HostedVoices, name: str) -> None:
    """Over HTTP `generate` Triton hands it on as a parameter."""
    request = pb_utils.InferenceRequest(
        [as_tensor("operation", TYPES["operation"], ["list"])], pb_utils.ResponseSender({}), {name: "x"}
    )
    [response] = voices.model.execute([request])
    closest = {"nmae": "name"}.get(name, "created_at")
    assert code_and_words(response.error()) == (
        pb_utils.TritonError.INVALID_ARG,
        f"unknown input {name!r}; did you mean {closest!r}?",
    )


# --- answers ----------------------------------------------------------------------------------------------


def test_a_new_store_has_no_voices(voices):
    assert voices.ask("list") == {"voices": []}


def test_a_saved_voice_is_listed_and_described_with_all_that_was_said_of_it(voices):
    metadata = {"consent": "录音者同意", "age": 81}
    saved = voices.ask("save", name=["grandpa"], metadata=[json.dumps(metadata)], **RECORDING)
    assert saved == {"name": "grandpa"}
    [listed] = voices.ask("list")["voices"]
    assert voices.ask("describe", name=["grandpa"]) == listed
    assert datetime.now(timezone.utc) - datetime.fromisoformat(listed.pop("created_at")) < timedelta(
        minutes=1
    )
    assert listed.pop("model").startswith("qwen3_tts 1b7 base (64 values) config ")
    assert listed == {"name": "grandpa", "x_vector_only": False, "ref_text": WORDS, "metadata": metadata}


def test_a_described_voice_comes_with_its_prompt(voices):
    voices.ask("save", name=["grandpa"], **RECORDING)
    outputs = voices.outputs(operation=["describe"], name=["grandpa"])
    np.testing.assert_array_equal(outputs["speaker_embedding"], EMBEDDING[0])
    np.testing.assert_array_equal(outputs["ref_codes"], CODES[0])
    assert outputs["ref_text"][0].decode() == WORDS


@pytest.mark.parametrize(
    "no_codes", [{}, {"ref_codes": CODES[:, :0], "ref_text": [""]}, {"ref_text": [WORDS]}]
)
def test_an_embedding_alone_is_a_voice_without_frames(voices, no_codes):
    voices.ask("save", name=["grandpa"], **X_VECTOR, **no_codes)
    outputs = voices.outputs(operation=["describe"], name=["grandpa"])
    assert outputs["ref_codes"].shape == (0, 16)
    assert outputs["ref_text"][0] == b""
    summary = json.loads(outputs["result"][0])
    assert (summary["x_vector_only"], summary["ref_text"], summary["metadata"]) == (True, "", {})


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - {"describe"}))
def test_only_a_description_comes_with_a_prompt(voices, operation):
    voices.ask("save", name=["grandpa"], **RECORDING)
    outputs = voices.outputs(operation=[operation], name=["grandpa"], **RECORDING, **MADE)
    assert outputs.keys() == {"result"}


def test_a_restored_voice_is_as_old_as_it_was_and_its_makers(voices):
    voices.ask("restore", name=["grandpa"], metadata=['{"consent": "yes"}'], **RECORDING, **MADE)
    described = voices.ask("describe", name=["grandpa"])
    assert (described["created_at"], described["model"]) == (MADE["created_at"][0], MADE["model"][0])
    assert (described["ref_text"], described["metadata"]) == (WORDS, {"consent": "yes"})


def test_a_deleted_voice_is_gone(voices):
    voices.ask("save", name=["grandpa"], **RECORDING)
    assert voices.ask("delete", name=["grandpa"]) == {"name": "grandpa"}
    assert voices.ask("list") == {"voices": []}
    assert voices.error(operation=["describe"], name=["grandpa"]) == (
        TritonError.NOT_FOUND,
        "there is no voice named 'grandpa'",
    )


def test_names_are_answered_as_they_are_kept(voices):
    assert voices.ask("save", name=["Jose\u0301"], **X_VECTOR) == {"name": "Jos\u00e9"}
    assert voices.ask("delete", name=["Jose\u0301"]) == {"name": "Jos\u00e9"}


def test_speakers_are_the_checkpoints_in_upstreams_words(voices):
    speakers = voices.ask("speakers")["speakers"]
    assert [speaker["name"] for speaker in speakers] == SPEAKERS
    assert speakers[3] == {
        "name": "Ryan",
        "description": "Dynamic male voice with strong rhythmic drive.",
        "native_language": "English",
    }


def test_languages_are_those_a_caller_may_name(voices):
    assert voices.ask("languages") == {"languages": LANGUAGES}


def test_a_saved_voice_is_what_the_base_model_will_find(voices, tmp_path):
    voices.ask("save", name=["a"], **RECORDING)
    voices.ask("save", name=["b"], speaker_embedding=EMBEDDING * 4)
    store = open_store(str(tmp_path / "voices"))
    np.testing.assert_array_equal(resolve_voice(store, "a", HIDDEN_SIZE).ref_codes, CODES[0])
    mixed = resolve_voice(store, "a(2)+b(1)", HIDDEN_SIZE)
    np.testing.assert_allclose(mixed.speaker_embedding, EMBEDDING[0] * 2, rtol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------

ALL_OPERATIONS = "must be one of list, describe, save, restore, delete, speakers, languages"
REFUSED = {
    "no operation": ({"operation": [""]}, ALL_OPERATIONS),
    "another operation": ({"operation": ["rename"]}, f"operation is 'rename'; it {ALL_OPERATIONS}"),
    "no name": ({"operation": ["save"], **X_VECTOR}, "name is missing"),
    "a path": ({"operation": ["save"], "name": ["../grandpa"], **X_VECTOR}, "name is '../grandpa'"),
    "a speaker's name": ({"operation": ["save"], "name": ["VIVIAN"], **X_VECTOR}, "a built-in speaker's"),
    "broken text": ({"operation": ["save"], "name": [b"\xff"], **X_VECTOR}, "name is not valid UTF-8"),
    "no embedding": ({"operation": ["save"], "name": ["a"]}, "speaker_embedding is missing"),
    "another size": (
        {"operation": ["save"], "name": ["a"], "speaker_embedding": EMBEDDING[:, :32]},
        "speaker_embedding has 32 values; voices made by qwen3_tts 1b7 base .* have 64: .* another size",
    ),
    "no number": (
        {"operation": ["save"], "name": ["a"], "speaker_embedding": EMBEDDING * np.float32("inf")},
        "holds a value that is no number from -10000 to 10000",
    ),
    "a code too high": (
        {"operation": ["save"], "name": ["a"], **RECORDING, "ref_codes": CODES + 2001},
        "ref_codes holds 2001 to 2048; codes are 0 to 2047",
    ),
    "codes without words": (
        {"operation": ["save"], "name": ["a"], **X_VECTOR, "ref_codes": CODES},
        "ref_text is missing",
    ),
    "metadata that is no object": (
        {"operation": ["save"], "name": ["a"], **X_VECTOR, "metadata": ["[]"]},
        "metadata is .* must be a JSON object",
    ),
    "a backup of no time": (
        {"operation": ["restore"], "name": ["a"], **X_VECTOR, **MADE, "created_at": ["2025-03-04"]},
        "created_at is '2025-03-04'; it must be a time with its zone",
    ),
    "a backup of nobody's": (
        {"operation": ["restore"], "name": ["a"], **X_VECTOR, **MADE, "model": [""]},
        "model has 0 characters; as describe gives it, it has 1 to 512",
    ),
    "a backup under a speaker's name": (
        {"operation": ["restore"], "name": ["VIVIAN"], **X_VECTOR, **MADE},
        "a built-in speaker's",
    ),
    "a backup of another size": (
        {"operation": ["restore"], "name": ["a"], "speaker_embedding": EMBEDDING[:, :32], **MADE},
        "another size",
    ),
    "two rows": ({"operation": ["list", "list"]}, "operation has 2 rows; this model takes one row"),
    "a name that is a path": ({"operation": ["describe"], "name": ["/etc/passwd"]}, "name is '/etc/passwd'"),
}


@pytest.mark.parametrize(("inputs", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_request_is_told_what_is_wrong_and_nothing_is_saved(voices, inputs, message):
    code, said = voices.error(**inputs)
    assert code == TritonError.INVALID_ARG
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert voices.ask("list") == {"voices": []}


@pytest.mark.parametrize("operation", ["describe", "delete"])
@pytest.mark.parametrize("name", ["nobody", "vivian"])
def test_a_voice_nobody_saved_is_not_found(voices, operation, name):
    code, message = voices.error(operation=[operation], name=[name])
    assert (code, message) == (TritonError.NOT_FOUND, f"there is no voice named '{name}'")


def test_a_store_that_cannot_be_written_is_our_fault_and_says_so(voices, tmp_path):
    (tmp_path / "voices").rename(tmp_path / "gone")
    (tmp_path / "voices").write_text("no directory")
    code, message = voices.error(operation=["save"], name=["grandpa"], **X_VECTOR)
    assert code == TritonError.INTERNAL
    assert message == "the voice store cannot write: voice 'grandpa' was not saved: Not a directory"


# --- configuration ----------------------------------------------------------------------------------------


def test_the_environment_wins(host, monkeypatch, tmp_path):
    monkeypatch.setenv("VOICE_STORE", f"file://{tmp_path}/elsewhere")
    host().ask("save", name=["grandpa"], **X_VECTOR)
    assert (tmp_path / "elsewhere" / "names").is_dir()
    assert not (tmp_path / "voices").exists()


BROKEN = {
    "no store": (
        {"voice_store": "gopher://voices"},
        "^voices: VOICE_STORE is a gopher address nobody can open",
    ),
    "no checkpoint": ({"checkpoint": "./nowhere"}, "^voices: there is no checkpoint directory .*nowhere$"),
    "another task": ({"base_checkpoint": "../../checkpoints/tiny/custom_voice"}, "this needs base$"),
    "a misspelt parameter": (
        {"voice_stor": "x"},
        "^voices: unknown parameter 'voice_stor'; did you mean 'voice_store'",
    ),
}


@pytest.mark.parametrize(("parameters", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_model_that_cannot_work_does_not_start(host, parameters, message):
    with pytest.raises(pb_utils.TritonModelException, match=message):
        host(**parameters)


def test_a_checkpoint_without_configuration_is_refused(host, tmp_path):
    with pytest.raises(pb_utils.TritonModelException, match=r"has no readable config\.json"):
        host(checkpoint=str(tmp_path))


def test_an_explicit_load_wins_over_the_file_and_the_environment():
    given = {"checkpoint": "a", "base_checkpoint": "b", "voice_store": "c"}
    environment = {"QWEN_TTS_CUSTOM_VOICE_MODEL": "there"}
    assert VoicesConfig.read(given, environment) == VoicesConfig("there", "b", "c")
    loaded = given | {"loaded_checkpoint": "yonder"}
    assert VoicesConfig.read(loaded, environment) == VoicesConfig("yonder", "b", "c")


def test_a_parameter_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="parameter voice_store is missing"):
        VoicesConfig.read({"checkpoint": "a", "base_checkpoint": "b"}, {})


def test_every_parameter_is_in_the_file_and_explained_above_it():
    assert set(CONFIG.parameters) == set(VARIABLES.values())
    lines = (DIRECTORY / "config.pbtxt").read_text(encoding="utf-8").splitlines()
    parameters = [i for i, line in enumerate(lines) if line.startswith("parameters")]
    assert all(lines[i - 1].startswith("# ") for i in parameters)
    named = " ".join(lines)
    assert all(f"{variable} wins." in named for variable in VARIABLES)


def test_the_file_promises_what_the_contract_does():
    assert CONFIG.backend == "python"
    assert CONFIG.max_batch_size > 0
    assert not CONFIG.model_transaction_policy.decoupled
    assert not CONFIG.response_cache.enable
    assert [group.kind for group in CONFIG.instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert [tensor.name for tensor in CONFIG.input if not tensor.optional] == ["operation"]
    assert all(tensor.allow_ragged_batch for tensor in CONFIG.input if -1 in tensor.dims)
    assert {tensor.name for tensor in CONFIG.output} == PROMPT_OUTPUTS | {"result"}


def test_nobody_is_sent_away_from_the_queue_within_a_minute():
    policy = CONFIG.dynamic_batching.default_queue_policy
    assert policy.max_queue_size >= 64
    assert policy.default_timeout_microseconds >= 60_000_000
    assert policy.timeout_action == ModelQueuePolicy.REJECT
