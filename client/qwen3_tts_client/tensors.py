"""Values into tensors and back; the first dimension of each is the batch, here always of 1."""

import struct
from typing import Any

import numpy as np
from tritonclient.grpc import InferResult, service_pb2

from qwen3_tts_client.errors import EngineFailed, InvalidRequest

_NUMBER_FORMATS = {"BOOL": "<?", "INT32": "<i", "INT64": "<q", "FP32": "<f"}


def add_input(request: service_pb2.ModelInferRequest, name: str, datatype: str, value: Any) -> None:
    """Add a value as [1, 1], or an array as [1, *its shape].

    Raises:
        InvalidRequest: the value does not fit the type.
    """
    shape = value.shape if isinstance(value, np.ndarray) else (1,)
    raw = _encode(name, datatype, value)
    request.inputs.add(name=name, datatype=datatype, shape=[1, *shape])
    request.raw_input_contents.append(raw)


def read_output(result: InferResult, name: str) -> Any:
    """An output as it came, [1, ...].

    Raises:
        EngineFailed: there is none.
    """
    tensor = result.as_numpy(name)
    if tensor is None:
        raise EngineFailed(f"a response lacks the output {name!r}; is this a Qwen3-TTS model?")
    return tensor


def read_scalar(result: InferResult, name: str) -> Any:
    return read_output(result, name).item()


def _encode(name: str, datatype: str, value: Any) -> bytes:
    try:
        if isinstance(value, np.ndarray):
            return value.astype(_NUMBER_FORMATS[datatype]).tobytes()
        if datatype == "BYTES":
            content: bytes = value if isinstance(value, bytes) else value.encode()
            return struct.pack("<I", len(content)) + content
        return struct.pack(_NUMBER_FORMATS[datatype], value)
    except (struct.error, OverflowError, AttributeError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{name}={value!r} does not fit its {datatype} tensor: {error}") from error
