"""The voice encoder's model.py and config.pbtxt, with a stand-in for Triton around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup, ModelQueuePolicy

from fakes import triton_python_backend_utils as pb_utils
from python_backend import (
    MODEL_REPOSITORY,
    as_tensor,
    code_and_words,
    declared_outputs,
    load_model_py,
    read_config,
)
from qwen3_tts_engine.config import CheckpointConfig
from qwen3_tts_engine.voice_encoder import VoiceEncoder

DIRECTORY = MODEL_REPOSITORY / "voice_encoder"
TRANSCRIPT = "This is what I sound like."
VARIABLES = ("QWEN_TTS_BASE_MODEL", "QWEN_TTS_TOKENIZER", "CUDA_DEVICE")
TYPES = {"pcm": "TYPE_FP32", "ref_text": "TYPE_STRING", "x_vector_only": "TYPE_BOOL"}


def noise(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    """A row: [1, samples]"""
    return (0.1 * np.random.default_rng(seed).standard_normal((1, num_samples))).astype(np.float32)


class HostedEncoder:
    """The model between `initialize` and the end of the test."""

    def __init__(self, instances: int = 1, **parameters: str) -> None:
        self.model = load_model_py(DIRECTORY).TritonPythonModel()
        self.model.initialize(self._args(parameters, instances))

    def ask(self, *requests: dict[str, Any]) -> list[Any]:
        """Each request's outputs by name, the batch axis taken off, or its error's code and message."""
        responses = self.model.execute([self._request(inputs) for inputs in requests])
        return [self._read(response) for response in responses]

    def _request(self, inputs: dict[str, Any]) -> pb_utils.InferenceRequest:
        tensors = [as_tensor(name, TYPES[name], value) for name, value in inputs.items()]
        return pb_utils.InferenceRequest(tensors, pb_utils.ResponseSender({}))

    def _read(self, response: pb_utils.InferenceResponse) -> Any:
        if response.has_error():
            return code_and_words(response.error())
        arrays = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        declared = declared_outputs(read_config(DIRECTORY))
        assert arrays.keys() == declared.keys()
        assert [declared[name].complaint(array) for name, array in arrays.items()] == [None] * len(arrays)
        return {name: array[0] for name, array in arrays.items()}

    def _args(self, parameters: dict[str, str], instances: int) -> dict[str, str]:
        config = MessageToDict(
            read_config(DIRECTORY),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        config["parameters"] |= {name: {"string_value": value} for name, value in parameters.items()}
        config["instance_group"] = [{"kind": "KIND_CPU", "count": instances}]
        return {
            "model_name": "voice_encoder",
            "model_version": "1",
            "model_repository": str(DIRECTORY),
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_config": json.dumps(config),
        }


@pytest.fixture(scope="module")
def host(tiny_checkpoints: Path) -> Callable[..., HostedEncoder]:
    """`host(device="cpu")`: the model on the tiny base checkpoint, with that parameter."""

    def load(**settings: Any) -> HostedEncoder:
        with pytest.MonkeyPatch.context() as patch:
            for variable in VARIABLES:
                patch.delenv(variable, raising=False)
            return HostedEncoder(**{"checkpoint": str(tiny_checkpoints / "base")} | settings)

    return load


@pytest.fixture(scope="module")
def encoder(host: Callable[..., HostedEncoder]) -> HostedEncoder:
    return host()


# --- answers ----------------------------------------------------------------------------------------------


def test_a_recording_becomes_an_embedding_and_frames(encoder):
    [voice] = encoder.ask({"pcm": noise(30_000), "ref_text": [TRANSCRIPT]})
    assert voice["speaker_embedding"].shape == (64,)
    assert voice["ref_codes"].shape == (16, 16)
    assert voice["ref_codes"].min() >= 0
    assert voice["ref_codes"].max() < 2048


@pytest.mark.parametrize("ref_text", [{}, {"ref_text": [""]}, {"ref_text": [TRANSCRIPT]}])
def test_an_embedding_alone_comes_with_no_frames(encoder, ref_text):
    [whole] = encoder.ask({"pcm": noise(30_000), "ref_text": [TRANSCRIPT]})
    [alone] = encoder.ask({"pcm": noise(30_000), "x_vector_only": [True], **ref_text})
    assert alone["ref_codes"].shape == (0, 16)
    np.testing.assert_array_equal(alone["speaker_embedding"], whole["speaker_embedding"])


def test_a_recording_becomes_the_same_voice_alone_and_in_company(encoder):
    requests = [{"pcm": noise(n, seed=n), "ref_text": [TRANSCRIPT]} for n in (24_000, 30_000, 30_000, 50_000)]
    requests.insert(1, {"pcm": noise(40_000), "x_vector_only": [True]})
    alone = [encoder.ask(request)[0] for request in requests]
    for one, other in zip(encoder.ask(*requests), alone, strict=True):
        np.testing.assert_array_equal(one["ref_codes"], other["ref_codes"])
        np.testing.assert_array_equal(one["speaker_embedding"], other["speaker_embedding"])


# --- refusals ---------------------------------------------------------------------------------------------

BAD = {
    "too short": ({"pcm": noise(12_000), "ref_text": [TRANSCRIPT]}, "pcm lasts 0.50 s"),
    "too long": ({"pcm": noise(31 * 24_000), "ref_text": [TRANSCRIPT]}, "pcm lasts 31.00 s"),
    "nothing": ({"pcm": noise(0), "ref_text": [TRANSCRIPT]}, "pcm is missing"),
    "absent": ({"ref_text": [TRANSCRIPT]}, "pcm is missing"),
    "not a number": (
        {"pcm": noise(24_000) * np.float32("nan"), "ref_text": [TRANSCRIPT]},
        "pcm holds samples",
    ),
    "not scaled": ({"pcm": noise(24_000) * np.float32(32767), "ref_text": [TRANSCRIPT]}, "pcm reaches"),
    "no transcript": ({"pcm": noise(24_000)}, "ref_text is missing"),
    "an empty transcript": ({"pcm": noise(24_000), "ref_text": [""]}, "ref_text is missing"),
    "a blank transcript": ({"pcm": noise(24_000), "ref_text": ["  "]}, "ref_text is missing"),
    "false is no x-vector": ({"pcm": noise(24_000), "x_vector_only": [False]}, "ref_text is missing"),
    "no text": ({"pcm": noise(24_000), "ref_text": [b"\xff"]}, "ref_text is not valid UTF-8"),
    "two rows": ({"pcm": np.tile(noise(24_000), (2, 1)), "ref_text": ["a", "b"]}, "pcm has 2 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_by_name(encoder, case):
    inputs, beginning = BAD[case]
    [(code, message)] = encoder.ask(inputs)
    assert code == pb_utils.TritonError.INVALID_ARG
    assert message.startswith(beginning)


def test_a_bad_request_does_not_disturb_its_company(encoder):
    good = {"pcm": noise(30_000), "ref_text": [TRANSCRIPT]}
    first, (code, _), last = encoder.ask(good, BAD["not a number"][0], good)
    assert code == pb_utils.TritonError.INVALID_ARG
    np.testing.assert_array_equal(first["ref_codes"], last["ref_codes"])


def test_a_failure_is_ours_and_the_next_request_is_served(encoder, monkeypatch):
    good = {"pcm": noise(30_000), "ref_text": [TRANSCRIPT]}
    with monkeypatch.context() as patch:
        patch.setattr(VoiceEncoder, "_embed", lambda *_: 1 / 0)
        [(code, message)] = encoder.ask(good)
    assert code == pb_utils.TritonError.INTERNAL
    assert "division by zero" in message
    [voice] = encoder.ask(good)
    assert len(voice["ref_codes"]) == 16


# --- loading ----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_task_is_refused_by_name(host, tiny_checkpoints):
    with pytest.raises(
        pb_utils.TritonModelException, match=r"^voice_encoder: .*custom_voice checkpoint.*base$"
    ):
        host(checkpoint=str(tiny_checkpoints / "custom_voice"))


def test_an_unknown_parameter_is_refused(host):
    with pytest.raises(pb_utils.TritonModelException, match="unknown parameter 'dtype'"):
        host(dtype="float32")


def test_one_device_for_several_instances_is_refused(host):
    with pytest.raises(pb_utils.TritonModelException, match="several instances"):
        host(device="cuda:0", instances=2)


def test_the_model_is_warm_before_it_is_ready(host, monkeypatch):
    warmed: list[VoiceEncoder] = []
    monkeypatch.setattr(VoiceEncoder, "warm_up", lambda encoder: warmed.append(encoder))
    assert warmed == [host().model.encoder]


# --- config.pbtxt -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config():
    return read_config(DIRECTORY)


def test_recordings_of_any_length_are_gathered(config):
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    assert all(tensor.allow_ragged_batch for tensor in config.input if -1 in tensor.dims)


def test_an_instance_goes_where_there_is_a_gpu_or_else_to_the_cpu(config):
    [group] = config.instance_group
    assert (group.kind, group.count) == (ModelInstanceGroup.KIND_AUTO, 1)


def test_the_queue_is_as_long_and_as_patient_as_promised(config):
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size >= 64
    assert policy.default_timeout_microseconds >= 60_000_000
    assert policy.timeout_action == ModelQueuePolicy.REJECT


def test_every_knob_is_in_the_file_at_its_default(config):
    given = {name: parameter.string_value for name, parameter in config.parameters.items()}
    assert given.keys() == {f.name for f in fields(CheckpointConfig)}
    in_file = CheckpointConfig.from_parameters(given)
    assert in_file == CheckpointConfig("../../checkpoints/tiny/base")
