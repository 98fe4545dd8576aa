"""Triton's part in the life of a Python model: load model.py, hand it requests, let it go."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from fakes import triton_python_backend_utils as pb_utils

MODEL_REPOSITORY = Path(__file__).parents[1] / "model_repository"

# The backend puts its module where `import` finds it before it imports any model.py; so does this.
sys.modules["triton_python_backend_utils"] = pb_utils


def read_config(directory: Path) -> ModelConfig:
    return text_format.Parse((directory / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


def declared_outputs(config: ModelConfig) -> dict[str, pb_utils.Output]:
    """As each response has to hold them: one row of every output."""
    return {
        output.name: pb_utils.Output(DataType.Name(output.data_type), (1, *output.dims))
        for output in config.output
    }


def load_model_py(directory: Path) -> ModuleType:
    """model.py by its place, as the backend loads it; no package is around it."""
    spec = importlib.util.spec_from_file_location(f"{directory.name}_model", directory / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_tensor(name: str, data_type: str, rows: Any) -> pb_utils.Tensor:
    """One value a row -> [rows, 1]; text becomes UTF-8, an array is taken as it is."""
    if isinstance(rows, np.ndarray):
        return pb_utils.Tensor(name, rows)
    values = [row.encode() if isinstance(row, str) else row for row in rows]
    return pb_utils.Tensor(name, np.array(values, pb_utils.NUMPY_TYPES[data_type]).reshape(len(values), 1))


@dataclass(frozen=True)
class Heard:
    """A response as a client reads it."""

    samples: np.ndarray
    encoded_audio: bytes
    sample_rate: int
    row: int
    chunk_index: int
    num_frames: int
    finish_reason: str

    @classmethod
    def in_(cls, response: pb_utils.InferenceResponse) -> Heard:
        assert not response.has_error(), response.error().message()
        tensors = {tensor.name(): tensor.as_numpy()[0] for tensor in response.output_tensors()}
        single = {name: array[0] for name, array in tensors.items() if name != "audio"}
        return cls(tensors["audio"], **single | {"finish_reason": single["finish_reason"].decode()})


class Call:
    """One request and everything that came back."""

    def __init__(self, request: pb_utils.InferenceRequest) -> None:
        self.request = request
        self.sender = request.get_response_sender()

    @property
    def chunks(self) -> list[Heard]:
        """All of them, once FINAL has come."""
        self.sender.wait_until_final()
        return [Heard.in_(response) for response in self.sender.responses]

    @property
    def samples(self) -> np.ndarray:
        return np.concatenate([chunk.samples for chunk in self.chunks])

    @property
    def error(self) -> tuple[int, str]:
        """The code of the error the request ended with, and its words."""
        self.sender.wait_until_final()
        *chunks, last = self.sender.responses
        assert last.has_error(), "the request ended well"
        assert not any(chunk.has_error() for chunk in chunks)
        return code_and_words(last.error())


def code_and_words(error: Any) -> tuple[int, str]:
    """Of an error whose message names its code, by gRPC's name, before its words."""
    name, _, words = error.message().partition(": ")
    assert error.code() == getattr(pb_utils.TritonError, name.replace("ARGUMENT", "ARG"))
    return error.code(), words


class HostedModel:
    """A model of the repository between `initialize` and `finalize`.

    Args:
        name: its directory.
        parameters: put in place of config.pbtxt's.
        instances: how many Triton would make of it.
    """

    def __init__(self, name: str, parameters: Mapping[str, str], instances: int = 1) -> None:
        self.directory = MODEL_REPOSITORY / name
        self.config = read_config(self.directory)
        self._types = {i.name: DataType.Name(i.data_type) for i in self.config.input}
        self._outputs = declared_outputs(self.config)
        self._calls: list[Call] = []
        self._is_finalized = False
        self.model = load_model_py(self.directory).TritonPythonModel()
        self.model.initialize(self._args(parameters, instances))

    def call(
        self,
        is_cancelled: Callable[[], bool] = lambda: False,
        before_send: Callable[[Any], None] = lambda response: None,
        traceparent: str | None = None,
        **inputs: Any,
    ) -> Call:
        """A request that has not been executed yet; each input is a list of one value a row, or an array."""
        tensors = [as_tensor(name, self._types[name], rows) for name, rows in inputs.items()]
        sender = pb_utils.ResponseSender(self._outputs, is_cancelled, before_send)
        self._calls.append(Call(pb_utils.InferenceRequest(tensors, sender, traceparent=traceparent)))
        return self._calls[-1]

    def ask(self, **inputs: Any) -> Call:
        call = self.call(**inputs)
        self.execute(call)
        return call

    def execute(self, *calls: Call) -> None:
        assert self.model.execute([call.request for call in calls]) is None

    def finalize(self) -> None:
        """Let go, and see that nobody was left without an end. All that was counted is published by then."""
        if not self._is_finalized:
            self._is_finalized = True
            self.model.finalize()
            assert all(call.sender.is_final for call in self._calls)

    def _args(self, parameters: Mapping[str, str], instances: int) -> dict[str, str]:
        config = MessageToDict(
            self.config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        config["parameters"] |= {name: {"string_value": value} for name, value in parameters.items()}
        config["instance_group"] = [{"kind": "KIND_CPU", "count": instances}]
        return {
            "model_name": self.directory.name,
            "model_version": "1",
            "model_repository": str(self.directory),
            "model_instance_name": f"{self.directory.name}_0_0",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_config": json.dumps(config),
        }
