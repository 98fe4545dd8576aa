"""A KServe gRPC server in this process that speaks a script: the wire is real, the voice is not.

A script is a generator of responses; it may stop to wait, refuse, or find out that the caller has gone:

    def one_chunk(call):
        yield chunk(0, finish_reason="stop")
        yield final()

Models that answer once have an answer in place of a script, from a call to its outputs by name:

    def hears_nothing(call):
        return {"speaker_embedding": np.zeros(8, np.float32), "ref_codes": np.zeros((0, 16), np.int32)}
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

SAMPLES_PER_FRAME = 1920
PATIENCE_S = 10.0  # a script that waits longer than this has found a bug
MOST_CALLS = 128  # at once; each holds a thread

Response = service_pb2.ModelStreamInferResponse
Script = Callable[["Call"], Iterator[Response]]
Answer = Callable[["Call"], dict[str, Any]]

SPEECH = {
    "text": "BYTES",
    "language": "BYTES",
    "stream": "BOOL",
    "audio_encoding": "BYTES",
    "seed": "INT64",
    "do_sample": "BOOL",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "repetition_penalty": "FP32",
    "subtalker_do_sample": "BOOL",
    "subtalker_temperature": "FP32",
    "subtalker_top_k": "INT32",
    "subtalker_top_p": "FP32",
    "max_frames": "INT32",
    "non_streaming_mode": "BOOL",
}
PROMPT = {"speaker_embedding": "FP32", "ref_codes": "INT32", "ref_text": "BYTES"}

# model -> input -> Triton's datatype
MODEL_INPUTS = {
    "qwen3_tts_custom_voice": SPEECH | {"speaker": "BYTES", "instruct": "BYTES"},
    "qwen3_tts_voice_design": SPEECH | {"instruct": "BYTES"},
    "qwen3_tts_base": SPEECH | PROMPT | {"voice": "BYTES"},
    "create_voice": {"ref_audio": "BYTES", "ref_text": "BYTES", "x_vector_only": "BOOL"},
    "voices": PROMPT | dict.fromkeys(("operation", "name", "metadata", "created_at", "model"), "BYTES"),
}

# dims behind the batch dimension, where they are not [1]
DIMS = {"speaker_embedding": (-1,), "ref_codes": (-1, 16)}

SPEAKERS = [
    {"name": "Ryan", "description": "a man in a hurry", "native_language": "English"},
    {"name": "Vivian", "description": "a young woman", "native_language": "Chinese"},
]


class RefusalError(Exception):
    """A model's no: the status of a call for one response, and in a stream a text that names it."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Call:
    """One request as a script sees it."""

    def __init__(self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        self.request = request
        self.metadata = dict(context.invocation_metadata())
        self.inputs = dict(zip((i.name for i in request.inputs), request.raw_input_contents, strict=True))
        self._gone = threading.Event()
        if not context.add_callback(self._gone.set):
            self._gone.set()

    @property
    def text(self) -> str:
        return self.string("text")

    def string(self, name: str) -> str:
        return self.inputs[name][4:].decode()

    def array(self, name: str) -> np.ndarray:
        """A tensor of numbers, with its batch dimension."""
        tensor = next(tensor for tensor in self.request.inputs if tensor.name == name)
        return np.frombuffer(self.inputs[name], triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)

    def wait_until_gone(self, limit_s: float = PATIENCE_S) -> bool:
        """True once the caller has cancelled; False if it does not within the limit."""
        return self._gone.wait(limit_s)


def samples_of(index: int, num_frames: int = 1) -> np.ndarray:
    """Audio that tells chunks apart."""
    return np.full(num_frames * SAMPLES_PER_FRAME, (index + 1) / 64, np.float32)


def chunk(index: int, *, samples: np.ndarray | None = None, finish_reason: str = "") -> Response:
    audio = samples_of(index) if samples is None else samples
    response = Response()
    for name, datatype, raw in (
        ("audio", "FP32", audio.astype("<f4").tobytes()),
        ("sample_rate", "INT32", np.int32(24000).tobytes()),
        ("row", "INT32", np.int32(0).tobytes()),
        ("chunk_index", "INT32", np.int32(index).tobytes()),
        ("num_frames", "INT32", np.int32(index + 1).tobytes()),
        ("finish_reason", "BYTES", len(finish_reason).to_bytes(4, "little") + finish_reason.encode()),
    ):
        shape = [1, audio.size] if name == "audio" else [1, 1]
        response.infer_response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.infer_response.raw_output_contents.append(raw)
    return response


def final(response: Response | None = None) -> Response:
    """The final flag, alone or on the last chunk."""
    response = Response() if response is None else response
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response


def error_text(message: str) -> Response:
    """An error without a code, as Triton sends a full queue."""
    return Response(error_message=message)


def says(num_chunks: int) -> Script:
    """A script that speaks so many chunks of one frame, then stops."""

    def script(call: Call) -> Iterator[Response]:
        for index in range(num_chunks):
            yield chunk(index, finish_reason="stop" if index == num_chunks - 1 else "")
        yield final()

    return script


def hears(call: Call) -> dict[str, Any]:
    """`create_voice`: recordings of other bytes have other embeddings; 3 frames, none for an x-vector."""
    digest = hashlib.sha256(call.inputs["ref_audio"]).digest()
    num_frames = 0 if call.array("x_vector_only").item() else 3
    return {
        "speaker_embedding": np.frombuffer(digest, np.uint8).astype(np.float32),
        "ref_codes": np.arange(num_frames * 16, dtype=np.int32).reshape(num_frames, 16),
    }


class Shelf:
    """`voices`: keeps them in memory."""

    def __init__(self) -> None:
        self.voices: dict[str, dict[str, Any]] = {}
        self.prompts: dict[str, dict[str, Any]] = {}  # the tensors of those that were saved

    def __call__(self, call: Call) -> dict[str, Any]:
        operation = call.string("operation")
        result = {"result": json.dumps(getattr(self, operation)(call))}
        return result | (self.prompts.get(call.string("name"), {}) if operation == "describe" else {})

    def speakers(self, call: Call) -> dict[str, Any]:
        return {"speakers": SPEAKERS}

    def languages(self, call: Call) -> dict[str, Any]:
        return {"languages": ["Auto", "Chinese", "English"]}

    def list(self, call: Call) -> dict[str, Any]:
        return {"voices": [*self.voices.values()]}

    def describe(self, call: Call) -> dict[str, Any]:
        name = call.string("name")
        if name not in self.voices:
            raise RefusalError(grpc.StatusCode.NOT_FOUND, f"no voice is saved as {name!r}")
        return self.voices[name]

    def save(self, call: Call) -> dict[str, Any]:
        return self._keep(call, created_at="2025-01-31T12:00:00Z", model="tiny")

    def restore(self, call: Call) -> dict[str, Any]:
        return self._keep(call, created_at=call.string("created_at"), model=call.string("model"))

    def _keep(self, call: Call, created_at: str, model: str) -> dict[str, Any]:
        name, has_codes = call.string("name"), "ref_codes" in call.inputs
        codes = call.array("ref_codes")[0] if has_codes else np.zeros((0, 16), np.int32)
        self.prompts[name] = {"speaker_embedding": call.array("speaker_embedding")[0], "ref_codes": codes}
        self.voices[name] = {
            "name": name,
            "created_at": created_at,
            "model": model,
            "x_vector_only": not has_codes,
            "ref_text": call.string("ref_text") if has_codes else "",
            "metadata": json.loads(call.string("metadata")) if "metadata" in call.inputs else {},
        }
        return {"name": name}

    def delete(self, call: Call) -> dict[str, Any]:
        del self.voices[self.describe(call)["name"]]
        return {"name": call.string("name")}


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves its models with one script and remembers who called, and who was gone before the end.

    Attributes:
        models: those that are loaded.
        repository: those that could be, besides.
        broken: those that cannot, with the reason why.
        parts: of ensembles, loaded along with them.
        gates: what the loading of a model waits for.
        num_looks: how often a model that unloads is still there when somebody looks.
        looks: how often somebody has looked at each model.
        history: loads and unloads, in order.
        most_copies: of a model that were ever held at once.
        configs: those that came along with a load.
        is_alive: what it answers to health checks.
        num_health_checks: answered so far.
        calls: of scripts.
        questions: calls of answers.
    """

    script: Script
    models: Sequence[str] = ("qwen3_tts_custom_voice", "qwen3_tts_voice_design")
    answers: dict[str, Answer] = field(default_factory=lambda: {"create_voice": hears, "voices": Shelf()})
    inputs: dict[str, str] | None = None
    api_key: str | None = None
    repository: Sequence[str] = ()
    broken: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Sequence[str]] = field(default_factory=dict)
    gates: dict[str, threading.Event] = field(default_factory=dict)
    num_looks: int = 2
    looks: Counter[str] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    most_copies: int = 1
    configs: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    loading: set[str] = field(default_factory=set)
    unloading: dict[str, int] = field(default_factory=dict)
    is_alive: bool = True
    num_health_checks: int = 0
    calls: list[Call] = field(default_factory=list)
    questions: list[Call] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"{self.host}:{self.port}"

    def ModelStreamInfer(self, requests, context):  # noqa: N802
        self._check_key(context)
        for request in requests:
            self._check_request(request, context)
            yield from self._speak(Call(request, context), context)

    def _speak(self, call: Call, context: grpc.ServicerContext) -> Iterator[Response]:
        ended = threading.Event()
        context.add_callback(lambda: ended.is_set() or self.cancelled.set())
        self.calls.append(call)
        try:
            yield from self.script(call)
            ended.set()
        except RefusalError as refusal:
            ended.set()
            yield error_text(f"{refusal.code.name}: {refusal}")

    def ModelInfer(self, request, context):  # noqa: N802
        self._check_key(context)
        self._check_request(request, context)
        call = Call(request, context)
        self.questions.append(call)
        try:
            return answered(self.answers[request.model_name](call))
        except RefusalError as refusal:
            context.abort(refusal.code, str(refusal))

    def ServerLive(self, request, context):  # noqa: N802
        self.num_health_checks += 1
        return service_pb2.ServerLiveResponse(live=self.is_alive)

    def ServerMetadata(self, request, context):  # noqa: N802
        self._check_key(context)
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelReady(self, request, context):  # noqa: N802
        self._check_key(context)
        return service_pb2.ModelReadyResponse(ready=request.name in self.models)

    def ModelMetadata(self, request, context):  # noqa: N802
        response = service_pb2.ModelMetadataResponse(name=request.name)
        for name, datatype in (self.inputs or MODEL_INPUTS[request.name]).items():
            response.inputs.add(name=name, datatype=datatype, shape=[-1, 1])
        return response

    def ModelConfig(self, request, context):  # noqa: N802
        self._check_model(request.name, context)
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=16)
        config.model_transaction_policy.decoupled = True
        config.dynamic_batching.max_queue_delay_microseconds = 500
        if request.name.startswith("qwen3_tts_"):
            config.parameters["checkpoint"].string_value = "../../checkpoints/tiny"
            config.parameters["slots"].string_value = "16"
        for parameter, value in loaded_parameters(self.configs.get(request.name)).items():
            config.parameters[parameter].string_value = value["string_value"]
        return service_pb2.ModelConfigResponse(config=config)

    def RepositoryIndex(self, request, context):  # noqa: N802
        self._check_key(context)
        response = service_pb2.RepositoryIndexResponse()
        for name in dict.fromkeys((*self.models, *self.repository)):
            state = self._look_at(name)
            response.models.add(name=name, version="1", state=state, reason=self.reasons.get(name, ""))
        return response

    def RepositoryModelUnload(self, request, context):  # noqa: N802
        """Returns at once, as Triton does; the model goes when its last request has."""
        name = request.model_name
        self.history.append(f"unload {name}")
        self.repository = (*self.repository, name)
        self.models = [model for model in self.models if model != name]
        self.unloading[name] = self.num_looks
        self.reasons[name] = "unloaded"
        return service_pb2.RepositoryModelUnloadResponse()

    def RepositoryModelLoad(self, request, context):  # noqa: N802
        name = request.model_name
        self.history.append(f"load {name}")
        if name in self.models or name in self.unloading:
            self.most_copies = 2
        if name in self.gates:
            self.loading.add(name)
            self.gates[name].wait(PATIENCE_S)
            self.loading.discard(name)
        if name in self.broken:
            self.reasons[name] = self.broken[name]
            reason = f"load failed for model '{name}': {self.broken[name]}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        self.configs[name] = request.parameters["config"].string_param
        self.models = list(dict.fromkeys([*self.models, *self.parts.get(name, ()), name]))
        self.reasons.pop(name, None)
        return service_pb2.RepositoryModelLoadResponse()

    def _look_at(self, name: str) -> str:
        self.looks[name] += 1
        if name in self.models:
            return "READY"
        if name in self.loading:
            return "LOADING"
        if name not in self.unloading:
            return "UNAVAILABLE" if name in self.reasons else ""
        self.unloading[name] -= 1
        if self.unloading[name] < 0:
            del self.unloading[name]
            return "UNAVAILABLE"
        return "UNLOADING"

    def _check_request(self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        """Turn away what Triton would."""
        model = request.model_name
        self._check_model(model, context)
        for tensor in request.inputs:
            known = MODEL_INPUTS[model].get(tensor.name)
            if known is None:
                self._refuse(context, f"unexpected inference input '{tensor.name}' for model '{model}'")
            if known != tensor.datatype:
                self._refuse(context, f"inference input '{tensor.name}' data-type is '{tensor.datatype}'")
            if not fits([*tensor.shape], (1, *DIMS.get(tensor.name, (1,)))):
                self._refuse(context, f"unexpected shape for input '{tensor.name}': {[*tensor.shape]}")

    def _check_model(self, name: str, context: grpc.ServicerContext) -> None:
        if name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def _refuse(self, context: grpc.ServicerContext, message: str) -> None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)

    def _check_key(self, context: grpc.ServicerContext) -> None:
        given = dict(context.invocation_metadata()).get("triton-grpc-protocol-authorization")
        if self.api_key is not None and given != f"Bearer {self.api_key}":
            context.abort(
                grpc.StatusCode.UNAVAILABLE,
                "This protocol is restricted, expecting header 'triton-grpc-protocol-authorization'",
            )


def loaded_parameters(config: str | None) -> dict[str, dict[str, str]]:
    """Of the configuration that came along with a model's last load, if one did."""
    return json.loads(config)["parameters"] if config else {}


def fits(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))


def answered(outputs: dict[str, Any]) -> service_pb2.ModelInferResponse:
    """One row of outputs, strings and arrays, as a message."""
    response = service_pb2.ModelInferResponse()
    for name, value in outputs.items():
        if isinstance(value, str):
            utf8 = value.encode()
            response.outputs.add(name=name, datatype="BYTES", shape=[1, 1])
            response.raw_output_contents.append(len(utf8).to_bytes(4, "little") + utf8)
        else:
            datatype = {"f": "FP32", "i": "INT32"}[value.dtype.kind]
            response.outputs.add(name=name, datatype=datatype, shape=[1, *value.shape])
            response.raw_output_contents.append(value.tobytes())
    return response


@contextmanager
def triton(
    script: Script, *, credentials: grpc.ServerCredentials | None = None, **facts
) -> Iterator[FakeTriton]:
    """A server on a free port, or on `port`, gone when the block is left."""
    fake = FakeTriton(script, **facts)
    with ThreadPoolExecutor(MOST_CALLS) as pool:
        server = grpc.server(
            pool, options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        # One address, and not localhost's two: of those, gRPC is content with the one that is free.
        address = f"127.0.0.1:{fake.port}"
        if credentials is None:
            fake.port = server.add_insecure_port(address)
        else:
            fake.port = server.add_secure_port(address, credentials)
            fake.host = "localhost"  # as its certificate calls it
        server.start()
        try:
            yield fake
        finally:
            server.stop(grace=None).wait()
