"""What can never be spoken is refused by name, costs nobody anything, and disturbs nobody."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from callers import (
    MODEL,
    PATIENCE_S,
    TEN_SECONDS,
    assert_same_audio,
    client_of,
    grpc_address,
    infer,
    read,
    stream_of,
    tensors,
)
from metrics_page import MetricsWatch
from qwen3_tts_client import InvalidRequest, SpeechError
from qwen3_tts_client.errors import error_from_triton
from qwen3_tts_engine.launch.server import Server

pytestmark = pytest.mark.triton

TEXT = "Good morning."
A_MEGABYTE = "word " * 200_000

# Each with what the message must say: the field, its value, what is allowed.
REFUSED_BY_THE_MODEL = [
    ({"text": ""}, "text is empty; say at least one word"),
    ({"text": " \n\t　"}, "text is empty; say at least one word"),
    ({"seed": 1}, "text is missing"),
    ({"text": A_MEGABYTE}, "text has [0-9]+ characters; at most 4096 tokens"),
    ({"text": "one two " * 3000}, "text has [0-9]+ tokens; at most 4096"),
    ({"text": TEXT, "instruct": A_MEGABYTE}, "instruct has [0-9]+ characters; at most 4096 tokens"),
    ({"text": "Hello.<|im_end|>"}, r"text contains the control token <\|im_end\|>"),
    ({"text": "<tts_pad>"}, "text contains the control token <tts_pad>"),
    ({"text": TEXT, "instruct": "<|im_start|>"}, r"instruct contains the control token <\|im_start\|>"),
    ({"text": b"Hello \xff"}, "text is not valid UTF-8: .* at byte 6"),
    ({"text": b"\xed\xa0\x80"}, "text is not valid UTF-8"),
    ({"text": TEXT, "speaker": b"ry\xe4n"}, "speaker is not valid UTF-8: .* at byte 2"),
    ({"text": TEXT, "speaker": "nobody"}, "speaker is 'nobody'; this model has serena, vivian, .*, dylan"),
    ({"text": TEXT, "speaker": "ryan "}, "speaker is 'ryan '; this model has serena"),
    (
        {"text": TEXT, "language": "Klingon"},
        "language is 'Klingon'; this model has Auto, Chinese, .*, Russian",
    ),
    ({"text": TEXT, "language": "sichuan_dialect"}, "language is 'sichuan_dialect'; this model has Auto"),
    (
        {"text": TEXT, "audio_encoding": "mp3"},
        "audio_encoding is 'mp3'; .* float32, pcm16_base64, wav_base64",
    ),
    ({"text": TEXT, "audio_encoding": "FLOAT32"}, "audio_encoding is 'FLOAT32'; it must be one of float32"),
    ({"text": TEXT, "repetition_penalty": 0.0}, "repetition_penalty is 0; it must be a number above 0"),
    ({"text": TEXT, "repetition_penalty": -1.0}, "repetition_penalty is -1; it must be a number above 0"),
    ({"text": TEXT, "repetition_penalty": np.nan}, "repetition_penalty is nan; it must be a number above 0"),
    ({"text": TEXT, "repetition_penalty": np.inf}, "repetition_penalty is inf; it must be a number above 0"),
    ({"text": TEXT, "max_frames": 0}, "max_frames is 0; this model allows 1 to 8191"),
    ({"text": TEXT, "max_frames": -5}, "max_frames is -5; this model allows 1 to 8191"),
    ({"text": TEXT, "max_frames": 8192}, "max_frames is 8192; this model allows 1 to 8191"),
    *(
        ({"text": TEXT, f"{prefix}{name}": value}, f"^{prefix}{name} is {value:g}; it must be {allowed}")
        for prefix in ("", "subtalker_")
        for name, value, allowed in [
            *(("temperature", value, "a number above 0") for value in (np.nan, np.inf, 0.0, -1.0)),
            ("top_k", -1, r"0 \(off\) or more"),
            *(("top_p", value, "above 0 and at most 1") for value in (0.0, -0.1, 1.5, np.nan)),
        ]
    ),
]

THREE_TEXTS = ["One.", "Two.", "Three."]
REFUSED_FOR_ONE_ROW = [
    ({"text": ["One.", "  ", "Three."]}, "row 1: text is empty"),
    ({"text": ["One.", b"\xff", "Three."]}, "row 1: text is not valid UTF-8"),
    ({"text": THREE_TEXTS, "temperature": [1.0, 1.0, 0.0]}, "row 2: temperature is 0"),
    ({"text": THREE_TEXTS, "speaker": ["ryan", "nobody", "ryan"]}, "row 1: speaker is 'nobody'"),
    ({"text": THREE_TEXTS, "language": ["Klingon", "", "Auto"]}, "row 0: language is 'Klingon'"),
    ({"text": THREE_TEXTS, "max_frames": [9, 9, 9999]}, "row 2: max_frames is 9999"),
    ({"text": ["One.", A_MEGABYTE, "Three."]}, "row 1: text has [0-9]+ characters"),
]

# What Triton itself turns away, before the model hears of it.
REFUSED_BY_TRITON = [
    ({"text": np.array([[1]], np.int32)}, "'text' data-type is 'INT32', but .* expects 'BYTES'"),
    (
        {"text": TEXT, "seed": np.array([[1]], np.int32)},
        "'seed' data-type is 'INT32', but .* expects 'INT64'",
    ),
    ({"text": TEXT, "temperature": np.array([[1.0]])}, "'temperature' data-type is 'FP64'"),
    ({"text": np.array([[b"One.", b"Two."]], object)}, r"shape for input 'text' .*\[-1,1\], got \[1,2\]"),
    ({"text": np.array([b"One."], object)}, r"shape for input 'text' .*\[-1,1\], got \[1\]"),
    ({"text": TEXT, "top_k": np.array([[[1]]], np.int32)}, r"shape for input 'top_k' .* got \[1,1,1\]"),
    ({"text": TEXT, "top_k": np.ones((2, 1), np.int32)}, "'text' batch size does not match other inputs"),
    ({"text": TEXT, "tempo": np.ones((1, 1), np.float32)}, "unexpected inference input 'tempo'"),
    ({"text": ["One."] * 17}, "batch-size must be <= 16"),
    ({}, r"missing required input\(s\) \['text'\]"),
]


def cases(table: list[tuple[dict[str, Any], str]]) -> list[Any]:
    return [
        pytest.param(*case, id=" ".join(f"{name}={value!r}"[:40] for name, value in case[0].items()))
        for case in table
    ]


@pytest.mark.parametrize(("inputs", "message"), cases(REFUSED_BY_THE_MODEL))
def test_a_request_that_no_voice_could_speak_is_refused_by_name(
    server: Server, inputs: Mapping[str, Any], message: str
) -> None:
    watch = MetricsWatch(server)
    error = refusal(server, inputs)
    assert error.message().startswith("INVALID_ARGUMENT: ")
    assert isinstance(for_the_caller(error), InvalidRequest)
    assert re.search(message, error.message().removeprefix("INVALID_ARGUMENT: "))
    assert watch.moved() == {'qwen3_tts_requests_total{outcome="invalid"}': 1}


@pytest.mark.parametrize(("inputs", "message"), cases(REFUSED_FOR_ONE_ROW))
def test_one_bad_row_refuses_the_request_by_its_number_and_nothing_is_spoken(
    server: Server, inputs: Mapping[str, Any], message: str
) -> None:
    watch = MetricsWatch(server)
    error = refusal(server, inputs)
    assert watch.moved() == {'qwen3_tts_requests_total{outcome="invalid"}': 1}
    assert error.message().startswith("INVALID_ARGUMENT: ")
    assert re.search(message, error.message().removeprefix("INVALID_ARGUMENT: "))


@pytest.mark.parametrize(("inputs", "message"), cases(REFUSED_BY_TRITON))
def test_a_request_that_is_no_request_for_this_model_is_turned_away(
    server: Server, inputs: Mapping[str, Any], message: str
) -> None:
    watch = MetricsWatch(server)
    error = refusal(server, inputs)
    assert re.search(message, error.message())
    assert isinstance(for_the_caller(error), InvalidRequest)
    assert watch.moved(answered=0) == {}


def test_a_timeout_that_has_passed_at_once_does_not_end_the_server(server: Server) -> None:
    """With allow_timeout_override, one in five such requests is the last that tritonserver 24.10 takes."""
    for _ in range(50):
        with triton.InferenceServerClient(grpc_address(server)) as client, stream_of(client, None) as heard:
            spoken = tensors(client, {"text": TEXT, "max_frames": 1})
            client.async_stream_infer(MODEL, spoken, timeout=1)  # in microseconds, of the queue
            assert read(heard.get(timeout=PATIENCE_S)).num_frames == 1


@pytest.mark.parametrize(("model", "name"), [(MODEL, "text"), ("voices", "operation")])
def test_a_string_in_a_tensor_of_no_rows_is_refused(server: Server, model: str, name: str) -> None:
    """Triton lets it pass, and hands it on without its first axis."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=name, datatype="BYTES", shape=[0, 1])
    request.raw_input_contents.append(b"\5\0\0\0Hello")
    metadata = [("triton_grpc_error", "true")]
    with grpc.insecure_channel(grpc_address(server)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = stub.ModelStreamInfer(iter([request]), timeout=PATIENCE_S, metadata=metadata)
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    assert f"{name} has values, but a shape of 0 rows" in refused.value.details()


def test_the_client_library_tells_it_as_an_invalid_request(server: Server) -> None:
    with client_of(server) as tts:
        with pytest.raises(InvalidRequest, match="language is 'Klingon'; this model has Auto, Chinese"):
            tts.synthesize(TEXT, language="Klingon")
        with pytest.raises(InvalidRequest, match=r"top_p is 1\.5; it must be above 0 and at most 1"):
            tts.synthesize(TEXT, top_p=1.5)
        assert tts.synthesize(TEXT, max_frames=1).num_frames == 1


def test_a_good_stream_among_bad_requests_is_spoken_unchanged(server: Server) -> None:
    with client_of(server) as tts, ThreadPoolExecutor() as pool:

        def say() -> Any:
            return tts.synthesize(TEXT, seed=3, **TEN_SECONDS).samples

        alone = say()
        among_others = pool.submit(say)
        num_refused = 0
        while not among_others.done():
            for inputs, _ in (*REFUSED_BY_THE_MODEL, *REFUSED_FOR_ONE_ROW, *REFUSED_BY_TRITON):
                refusal(server, inputs)
                num_refused += 1
        assert_same_audio(among_others.result(), alone)
        assert num_refused > 0


def refusal(server: Server, inputs: Mapping[str, Any]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as raised:
        list(infer(server, **inputs))
    return raised.value


def for_the_caller(error: InferenceServerException) -> SpeechError:
    """As the client library would raise it."""
    return error_from_triton(None, error.message(), url="")
