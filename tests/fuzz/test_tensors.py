"""Requests over gRPC that no client library would send, at the real server: it refuses them and speaks on."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc

from callers import client_of, grpc_address
from fakes.triton_server import DIMS, MODEL_INPUTS
from fuzzing import fuzz
from metrics_page import ACTIVE, QUEUED, WAITING, metrics_at_rest
from qwen3_tts_engine.launch.server import Server
from real_server import Footprint

pytestmark = pytest.mark.triton

DEADLINE_S = 15
FAULTS = {
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
"""What a server says that hangs, is gone, lost the request, or did not know what to do with it."""
FAULTS_OF_TRITON = ("Failed to process", "is not healthy", "is not at ready state", "has stopped accepting")

TYPES = ["BYTES", "FP32", "INT32", "INT64", "BOOL", "FP16", "UINT8", "FP64", "BF16", "", "STRING", "\0"]
ITEM_BYTES = {"FP32": 4, "INT32": 4, "INT64": 8, "BOOL": 1, "FP16": 2, "UINT8": 1, "FP64": 8, "BF16": 2}
DIMENSIONS = st.integers(0, 4) | st.sampled_from([-1, 2**31, 2**40, 2**62, -(2**63)])
NUMBERS = {"FP32": "<f4", "INT32": "<i4", "INT64": "<i8", "BOOL": "?"}
WORDS = st.sampled_from(
    [b"Hello.", b"", b"\xff", b"\0", b"list", b"ryan", b"a+b", b"{}", b"RIFF", b"\xed\xa0\x80"]
)


@dataclass(frozen=True)
class Input:
    name: str
    data_type: str
    shape: list[int]
    raw: bytes


def text_of(words: list[bytes]) -> bytes:
    """As Triton has strings: the length of each in four bytes, in front."""
    return b"".join(len(word).to_bytes(4, "little") + word for word in words)


@st.composite
def inputs(draw: st.DrawFn, name: str, data_type: str) -> Input:
    """As declared, but for one thing or two."""
    odd = draw(st.sampled_from([""] * 24 + ["type", "shape", "raw", "raw", "name"]))
    rows = draw(st.sampled_from([1] * 20 + [2, 0, 17]))
    shape = [rows, *(draw(st.integers(1, 3)) if dim == -1 else dim for dim in DIMS.get(name, (1,)))]
    num_items = int(np.prod(shape))
    if data_type == "BYTES":
        raw = text_of([draw(WORDS | st.binary(max_size=30)) for _ in range(num_items)])
    else:
        raw = draw(st.binary(min_size=8, max_size=8))[: ITEM_BYTES[data_type]] * num_items
    if name == "max_frames":
        raw = np.full(shape, draw(st.sampled_from([1, 2, 3, 0, -1, 2**31 - 1])), "<i4").tobytes()
    if odd == "type":
        data_type = draw(st.sampled_from(TYPES))
    elif odd == "shape":
        shape = draw(st.lists(DIMENSIONS, max_size=4))
    elif odd == "name":
        name = draw(st.text(max_size=12) | st.sampled_from([name.upper(), "text ", "a" * 5000]))
    elif odd == "raw":
        raw = draw(st.sampled_from([raw[:-1], raw + b"\0", b"", raw * 2, b"\xff\xff\xff\x7f" + raw, raw[4:]]))
    return Input(name, data_type, shape, raw)


@st.composite
def requests(draw: st.DrawFn, models: dict[str, Any]) -> Any:
    model = draw(st.sampled_from([*models]))
    declared = models[model]
    names = draw(st.lists(st.sampled_from([*declared]), unique=True, max_size=5))
    wanted = [name for name in ("text", "max_frames", "operation", "ref_audio") if name in declared]
    if draw(st.integers(0, 9)):
        names = [*wanted, *(name for name in names if name not in wanted)]
    if names and not draw(st.integers(0, 30)):
        names = [*names, names[0]]  # twice
    request = service_pb2.ModelInferRequest(
        model_name=model, id=draw(st.sampled_from(["", "1", "é", "a" * 5000]))
    )
    if not draw(st.integers(0, 19)):
        request.model_version = draw(st.sampled_from(["1", "2", "-1", "x"]))
    for name in names:
        tensor = draw(inputs(name, declared[name]))
        entry = request.inputs.add(name=tensor.name, datatype=tensor.data_type, shape=tensor.shape)
        if draw(st.integers(0, 60)):
            request.raw_input_contents.append(tensor.raw)
        else:
            entry.contents.bytes_contents.append(tensor.raw)
    for name in draw(st.lists(st.sampled_from(PARAMETERS), unique=True, max_size=1)):
        value = request.parameters[name]
        kind = draw(st.sampled_from(["int64_param"] * 6 + ["string_param", "bool_param"]))
        strange = {
            "int64_param": st.sampled_from([0, 1, 9, -1, 2**63 - 1]),
            "string_param": st.text(max_size=9),
        }
        setattr(value, kind, draw(strange.get(kind, st.booleans())))
    return request


PARAMETERS = [
    "priority",
    "timeout",
    "sequence_id",
    "sequence_start",
    "triton_enable_empty_final_response",
    "binary_data_output",
    "tempo",
    "headers",
]
SPOKEN = {name: MODEL_INPUTS[name] for name in MODEL_INPUTS if name.startswith("qwen3_tts_")}
ANSWERED = {
    "voices": MODEL_INPUTS["voices"],
    "create_voice": MODEL_INPUTS["create_voice"],
    "reference_audio": {"ref_audio": "BYTES"},
    "qwen3_tts": MODEL_INPUTS["qwen3_tts_custom_voice"],
    "nobody": {"text": "BYTES"},
}


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(grpc_address(server)) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(autouse=True, scope="module")
def _all_is_as_it_was(server: Server) -> Iterator[None]:
    """The same processes, no slot taken, and a canary sings as before."""

    def sing() -> Any:
        with client_of(server) as tts:
            return tts.synthesize("Good morning.", voice="ryan", seed=7, max_frames=20).samples

    song, stubs = sing(), stubs_of(server)
    yield
    np.testing.assert_array_equal(sing(), song)
    assert stubs_of(server) == stubs
    for gauge in (ACTIVE, WAITING, QUEUED):
        assert metrics_at_rest(server)[gauge] == 0


def stubs_of(server: Server) -> set[int]:
    return {stub.pid for stub in Footprint(server.process.pid).stubs()}


def is_fault(told: str) -> bool:
    """Of an error on a stream: what a model wrote begins with its code, what Triton wrote has none."""
    return told.startswith(tuple(code.name for code in FAULTS)) or any(
        words in told for words in FAULTS_OF_TRITON
    )


@fuzz(250, request=requests(SPOKEN))
def test_a_stream_of_strange_tensors_ends_in_audio_or_an_error(
    server: Server, stub: Any, request: Any
) -> None:
    """Left after a chunk: whoever sends no cap may hear a whole utterance, which is no fault."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(request)
    call = stub.ModelStreamInfer(iter(requests.get, None), timeout=DEADLINE_S)
    try:
        told = next(call).error_message
        assert not is_fault(told), told
    except grpc.RpcError as error:
        assert error.code() not in FAULTS or "queue" in str(error.details()), error  # noqa: PT017
    finally:
        requests.put(None)
        call.cancel()
    assert server.process.poll() is None


@fuzz(250, request=requests(ANSWERED))
def test_a_question_of_strange_tensors_is_answered_or_refused(
    server: Server, stub: Any, request: Any
) -> None:
    try:
        stub.ModelInfer(request, timeout=DEADLINE_S)
    except grpc.RpcError as error:
        assert error.code() not in FAULTS or "queue" in str(error.details()), error  # noqa: PT017
    assert server.process.poll() is None
