"""config.pbtxt against what callers were promised and what the engine does with it."""

import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup, ModelQueuePolicy

from fakes import triton_python_backend_utils as pb_utils
from python_backend import MODEL_REPOSITORY, load_model_py, read_config
from qwen3_tts_engine.request import GenerationDefaults
from qwen3_tts_engine.triton.reading import INPUTS, RequestReader

CUSTOM_VOICE, VOICE_DESIGN, BASE = "qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base"
ALL = {CUSTOM_VOICE, VOICE_DESIGN, BASE}

# docs/protocol.md's table: type, dims behind the batch dimension, and the models that have it.
PROMISED_INPUTS = {
    "text": ("STRING", [1], ALL),
    "language": ("STRING", [1], ALL),
    "speaker": ("STRING", [1], {CUSTOM_VOICE}),
    "instruct": ("STRING", [1], {CUSTOM_VOICE, VOICE_DESIGN}),
    "voice": ("STRING", [1], {BASE}),
    "speaker_embedding": ("FP32", [-1], {BASE}),
    "ref_codes": ("INT32", [-1, 16], {BASE}),
    "ref_text": ("STRING", [1], {BASE}),
    "stream": ("BOOL", [1], ALL),
    "audio_encoding": ("STRING", [1], ALL),
    "seed": ("INT64", [1], ALL),
    "do_sample": ("BOOL", [1], ALL),
    "temperature": ("FP32", [1], ALL),
    "top_k": ("INT32", [1], ALL),
    "top_p": ("FP32", [1], ALL),
    "repetition_penalty": ("FP32", [1], ALL),
    "subtalker_do_sample": ("BOOL", [1], ALL),
    "subtalker_temperature": ("FP32", [1], ALL),
    "subtalker_top_k": ("INT32", [1], ALL),
    "subtalker_top_p": ("FP32", [1], ALL),
    "max_frames": ("INT32", [1], ALL),
    "non_streaming_mode": ("BOOL", [1], ALL),
}
REQUIRED = {"text"}
PROMISED_OUTPUTS = {
    "audio": ("FP32", [-1]),
    "encoded_audio": ("STRING", [1]),
    "sample_rate": ("INT32", [1]),
    "row": ("INT32", [1]),
    "chunk_index": ("INT32", [1]),
    "num_frames": ("INT32", [1]),
    "finish_reason": ("STRING", [1]),
}
PROMISED_ROOM = 64  # requests in slots and queue together
PROMISED_PATIENCE_S = 60  # no request leaves the queue before

TALKERS = sorted(ALL & {path.parent.name for path in MODEL_REPOSITORY.glob("*/config.pbtxt")})


@pytest.fixture(params=TALKERS)
def directory(request) -> Path:
    return MODEL_REPOSITORY / request.param


@pytest.fixture
def config(directory):
    return read_config(directory)


def declared(tensors):
    return {t.name: (DataType.Name(t.data_type).removeprefix("TYPE_"), list(t.dims)) for t in tensors}


def test_the_models_of_the_repository_are_found():
    assert CUSTOM_VOICE in TALKERS


def test_a_model_is_called_what_its_directory_is_called(directory, config):
    assert config.name in ("", directory.name)
    assert (directory / "1" / "model.py").is_file()
    assert config.backend == "python"


def test_inputs_are_the_promised_ones(directory, config):
    promised = {name: (t, dims) for name, (t, dims, has) in PROMISED_INPUTS.items() if directory.name in has}
    assert declared(config.input) == promised


def test_outputs_are_the_promised_ones(config):
    assert declared(config.output) == PROMISED_OUTPUTS


def test_nothing_is_required_but_the_text(config):
    assert {tensor.name for tensor in config.input if not tensor.optional} == REQUIRED


def test_what_varies_in_length_may_be_batched_ragged(config):
    assert all(tensor.allow_ragged_batch for tensor in config.input if -1 in tensor.dims)


def test_every_input_the_engine_reads_is_declared_and_no_other(directory, config):
    task = load_model_py(directory).TritonPythonModel.task
    assert INPUTS[task].keys() | {"text"} == {tensor.name for tensor in config.input}


def test_a_model_is_decoupled_and_takes_several_rows(config):
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size > 1


def test_an_instance_goes_where_there_is_a_gpu_or_else_to_the_cpu(config):
    [group] = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_AUTO, 1)


ANSWERING = ("qwen3_tts", "reference_audio", "voice_encoder", "voices")


@pytest.mark.parametrize("name", ANSWERING)
def test_a_model_that_answers_once_knows_the_inputs_it_declares(name):
    model = load_model_py(MODEL_REPOSITORY / name).TritonPythonModel
    assert {*model.inputs} == {declared.name for declared in read_config(MODEL_REPOSITORY / name).input}


# --- the queue --------------------------------------------------------------------------------------------


def queue_policies(config):
    """The policy of every priority level."""
    batching = config.dynamic_batching
    own = dict(batching.priority_queue_policy)
    levels = range(1, max(1, batching.priority_levels) + 1)
    return [own.get(level, batching.default_queue_policy) for level in levels]


def test_slots_and_queue_together_take_what_was_promised(config):
    slots = int(config.parameters["slots"].string_value)
    for policy in queue_policies(config):
        is_unlimited = policy.max_queue_size == 0
        assert is_unlimited or policy.max_queue_size >= PROMISED_ROOM - slots


def test_nobody_is_sent_away_from_the_queue_before_the_promised_time(config):
    for policy in queue_policies(config):
        waits_forever = policy.default_timeout_microseconds == 0
        assert waits_forever or policy.default_timeout_microseconds >= PROMISED_PATIENCE_S * 1_000_000
        assert policy.timeout_action == ModelQueuePolicy.REJECT


def test_nobody_chooses_how_long_to_wait_in_the_queue() -> None:
    """A timeout of a few microseconds ends tritonserver 24.10."""
    configs = [read_config(path.parent) for path in MODEL_REPOSITORY.glob("*/config.pbtxt")]
    policies = [policy for config in configs for policy in queue_policies(config)]
    assert len(policies) >= len(TALKERS)
    assert not any(policy.allow_timeout_override for policy in policies)


def test_there_is_a_queue_and_its_batches_fit_the_model(config):
    assert config.HasField("dynamic_batching")
    assert all(size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)
    assert config.dynamic_batching.default_priority_level <= config.dynamic_batching.priority_levels


# --- parameters -------------------------------------------------------------------------------------------


def test_every_parameter_is_a_knob_of_the_engine_at_its_default(directory, config):
    given = {name: parameter.string_value for name, parameter in config.parameters.items()}
    kind = load_model_py(directory).TritonPythonModel.config_kind
    in_file = kind.from_parameters(given)
    by_default = kind(checkpoint=in_file.checkpoint)
    assert in_file == by_default


def test_every_knob_of_the_engine_is_in_the_file(directory, config):
    kind = load_model_py(directory).TritonPythonModel.config_kind
    assert set(config.parameters) == {f.name for f in fields(kind)}


def test_the_tiny_checkpoint_of_the_models_task_is_the_default(directory, config):
    task = directory.name.removeprefix("qwen3_tts_")
    assert config.parameters["checkpoint"].string_value == f"../../checkpoints/tiny/{task}"


def test_every_parameter_is_explained_above_it(directory):
    explained = False
    for line in (directory / "config.pbtxt").read_text(encoding="utf-8").splitlines():
        if line.startswith("parameters"):
            assert explained, line
        else:
            explained = line.startswith("# ")


# --- warm-up ----------------------------------------------------------------------------------------------

NUMBERS = {
    "INT32": ("<i", np.int32),
    "INT64": ("<q", np.int64),
    "FP32": ("<f", np.float32),
    "BOOL": ("?", bool),
}


def decoded(data_type, contents):
    """One element as Triton stores it: text with its length in front, numbers little-endian."""
    if data_type == "STRING":
        (length,) = struct.unpack_from("<I", contents)
        assert length == len(contents) - 4
        return np.array([[contents[4:]]], object)
    layout, dtype = NUMBERS[data_type]
    return np.array([struct.unpack(layout, contents)], dtype)


def test_whoever_can_speak_without_a_voice_warms_up(directory, config):
    # A voice's size is the checkpoint's: base cannot have one in a file, and its engine warms up by itself.
    assert bool(config.model_warmup) == (directory.name != BASE)


def test_every_warm_up_is_a_request_the_model_can_speak(directory, config):
    reader = RequestReader(load_model_py(directory).TritonPythonModel.task, GenerationDefaults())
    types = declared(config.input)
    for sample in config.model_warmup:
        tensors = []
        for name, value in sample.inputs.items():
            data_type = DataType.Name(value.data_type).removeprefix("TYPE_")
            assert (data_type, list(value.dims)) == types[name]
            contents = (directory / "warmup" / value.input_data_file).read_bytes()
            tensors.append(pb_utils.Tensor(name, decoded(data_type, contents)))
        [row] = reader.read(pb_utils.InferenceRequest(tensors, pb_utils.ResponseSender({})))
        limit = int(config.parameters["max_frames"].string_value)
        assert row.speech.max_frames is None or 1 <= row.speech.max_frames <= limit


def test_no_file_of_the_warm_up_is_left_over(directory, config):
    used = {value.input_data_file for sample in config.model_warmup for value in sample.inputs.values()}
    assert {path.name for path in directory.glob("warmup/*")} == used
