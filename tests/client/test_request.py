"""Requests as they go over the wire."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import InferInput
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from fakes.triton_server import DIMS, MODEL_INPUTS
from qwen3_tts_client import DesignedVoice, InvalidRequest, SpeechOptions
from qwen3_tts_client.request import INPUTS, address, inputs_of, speech_request, voice_request
from qwen3_tts_client.voice import MODELS, BuiltIn, Saved, VoicePrompt

REPOSITORY = Path(__file__).parents[2] / "model_repository"
SERVED = [model for model in MODEL_INPUTS if (REPOSITORY / model / "config.pbtxt").is_file()]

EVERY_OPTION = {
    "instruct": "whisper",
    "seed": -(2**63),
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1,
    "repetition_penalty": 1.05,
    "subtalker_do_sample": False,
    "subtalker_temperature": 0.5,
    "subtalker_top_k": 1,
    "subtalker_top_p": np.float32(0.5),
    "max_frames": np.int64(8191),
    "non_streaming_mode": False,
}


PROMPT = VoicePrompt(np.zeros(8, np.float32), np.zeros((3, 16), np.int32), "Good morning.")


@pytest.mark.parametrize("model", SERVED)
def test_the_fake_server_takes_what_the_real_one_takes(model):
    config = text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), ModelConfig())
    assert MODEL_INPUTS[model] == {
        tensor.name: DataType.Name(tensor.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
        for tensor in config.input
    }
    for tensor in config.input:
        assert DIMS.get(tensor.name, (1,)) == tuple(tensor.dims)


@pytest.mark.parametrize("model", MODELS)
def test_every_input_is_one_the_model_knows(model):
    assert inputs_of(model).items() <= MODEL_INPUTS[model].items()
    assert MODEL_INPUTS[model].keys() - inputs_of(model).keys() == {"stream", "audio_encoding"}


def test_every_option_is_an_input_or_the_callers_own():
    options = SpeechOptions.__annotations__.keys()
    assert options - INPUTS.keys() == {"priority", "timeout_s", "request_id"}
    of_the_voice = {"speaker", "voice", "speaker_embedding", "ref_codes", "ref_text"}
    assert INPUTS.keys() - options == {"text", "language"} | of_the_voice
    assert options == EVERY_OPTION.keys() | {"priority", "timeout_s", "request_id"}


def test_only_what_is_given_is_sent():
    request = speech_request("Hi.", top_k=None)
    assert [tensor.name for tensor in request.inputs] == ["text"]


@pytest.mark.parametrize(("name", "value"), EVERY_OPTION.items())
def test_tensors_are_encoded_as_tritons_own_client_does(name, value):
    numpy_types = {"BYTES": np.object_, "BOOL": np.bool_, "INT32": np.int32, "INT64": np.int64}
    array = np.array([[value]], numpy_types.get(INPUTS[name], np.float32))
    theirs = InferInput(name, [1, 1], INPUTS[name]).set_data_from_numpy(array)
    ours = tensors(speech_request("Grüß dich, 世界", **{name: value}))
    assert ours[name] == (theirs._get_tensor(), theirs._get_content())


def test_a_voice_prompt_is_encoded_as_tritons_own_client_does():
    request = speech_request("Hi.")
    address(request, PROMPT)
    ours = tensors(request)
    assert request.model_name == "qwen3_tts_base"
    assert ours.keys() == {"text", "speaker_embedding", "ref_codes", "ref_text"}
    for name, array in (("speaker_embedding", PROMPT.speaker_embedding), ("ref_codes", PROMPT.ref_codes)):
        theirs = InferInput(name, [1, *array.shape], INPUTS[name]).set_data_from_numpy(array[None])
        assert ours[name] == (theirs._get_tensor(), theirs._get_content())


def test_a_prompt_without_codes_goes_without_codes_and_text():
    request = speech_request("Hi.")
    address(request, VoicePrompt(PROMPT.speaker_embedding, np.zeros((0, 16), np.int32), "ignored"))
    assert tensors(request).keys() == {"text", "speaker_embedding"}


def test_a_recording_is_sent_as_its_bytes():
    ours = tensors(voice_request("create_voice", ref_audio=b"RIFF\0\xff", ref_text=None, x_vector_only=True))
    assert ours["ref_audio"][1] == b"\x06\0\0\0RIFF\0\xff"
    assert ours.keys() == {"ref_audio", "x_vector_only"}


def test_a_request_has_an_id_asks_for_its_end_and_may_jump_the_queue():
    request = speech_request("Hi.", priority=1)
    assert uuid.UUID(request.id)
    assert speech_request("Hi.", request_id="mine").id == "mine"
    assert request.parameters["priority"].uint64_param == 1
    assert request.parameters["triton_enable_empty_final_response"].bool_param


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"top_k": 1.5}, r"top_k=1\.5 does not fit its INT32 tensor"),
        ({"seed": 2**63}, "seed=9223372036854775808 does not fit"),
        ({"temperature": "hot"}, "temperature='hot' does not fit"),
        ({"language": 7}, "language=7 does not fit"),
        ({"instruct": "\ud800"}, "does not fit its BYTES tensor"),
    ],
)
def test_a_value_that_does_not_fit_is_named(options, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        speech_request("Hi.", **options)


def test_a_designed_voice_leaves_no_room_for_an_instruction():
    with pytest.raises(InvalidRequest, match="already sets 'instruct'"):
        address(speech_request("Hi.", instruct="whisper"), DesignedVoice("a storyteller"))


@pytest.mark.parametrize("voice", [Saved("grandpa"), PROMPT])
def test_a_recorded_voice_takes_no_instruction(voice):
    with pytest.raises(InvalidRequest, match="qwen3_tts_base speaks with this voice and takes no 'instruct'"):
        address(speech_request("Hi.", instruct="whisper"), voice)


def test_a_built_in_speaker_does():
    address(speech_request("Hi.", instruct="whisper"), BuiltIn("ryan"))


def test_an_unknown_option_gets_a_suggestion():
    with pytest.raises(TypeError, match="unknown option 'temprature'; did you mean 'temperature'"):
        speech_request("Hi.", temprature=1.0)


def test_something_that_is_no_voice_is_refused():
    with pytest.raises(TypeError, match="a voice is a name"):
        address(speech_request("Hi."), 7)


def tensors(request):
    """What is sent, by name: its description and its bytes."""
    return {
        tensor.name: (tensor, raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
