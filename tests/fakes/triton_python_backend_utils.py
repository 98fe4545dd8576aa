"""Triton's `triton_python_backend_utils` as model.py sees it, without Triton, and stricter.

The real module sends what it is given: it drops an output nobody declared, passes on a wrong dtype or shape,
and answers a response after FINAL with an exception in whichever thread sent it. This one raises for all of
them, and remembers everything else. Behaviour follows the Python backend of Triton 2.51.
"""

import json
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1

PATIENCE_S = 10.0  # a response that takes longer than this never comes

NUMPY_TYPES = {
    "TYPE_BOOL": np.bool_,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_STRING": np.object_,
}


class TritonModelException(Exception):
    """What Triton makes a load or a request fail with."""


class TritonError:
    """Carried by a response in place of tensors."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        if not isinstance(message, str):
            raise TypeError(f"an error's message is {message!r}, which is no text")
        if code not in range(8):
            raise TritonModelException(f"{code!r} is no error code")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A name and an array; text is an array of bytes objects."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is a {type(array).__name__}, not an array")
        if array.dtype not in NUMPY_TYPES.values():
            raise TritonModelException(f"{name} has dtype {array.dtype}, which Triton does not have here")
        if array.dtype == np.object_ and not all(isinstance(item, bytes) for item in array.flat):
            raise TritonModelException(f"{name} holds something other than bytes")
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    """Tensors or an error, never both."""

    def __init__(self, output_tensors: Iterable[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error
        if error is not None and self._tensors:
            raise TritonModelException("a response holds both tensors and an error")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"{error!r} is no TritonError")

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


@dataclass(frozen=True)
class Output:
    """A declared output: its type and its dims, the batch dimension in front; -1 is any size."""

    data_type: str
    dims: tuple[int, ...]

    def complaint(self, array: np.ndarray) -> str | None:
        if array.dtype != NUMPY_TYPES[self.data_type]:
            return f"has dtype {array.dtype}; it is declared {self.data_type}"
        sizes = zip(array.shape, self.dims, strict=False)
        if len(array.shape) != len(self.dims) or any(size != dim for size, dim in sizes if dim != -1):
            return f"has shape {list(array.shape)}; it is declared {list(self.dims)}"
        return None


class ResponseSender:
    """Takes one request's responses.

    Args:
        outputs: the declared outputs; each response has to hold all of them.
        is_cancelled: what `is_cancelled()` answers, asked anew every time.
        before_send: called with each response before it is taken; may raise, as Triton does without memory.
    """

    def __init__(
        self,
        outputs: Mapping[str, Output],
        is_cancelled: Callable[[], bool] = lambda: False,
        before_send: Callable[[InferenceResponse | None], None] = lambda response: None,
    ) -> None:
        self.responses: list[InferenceResponse] = []
        self._outputs = outputs
        self._is_cancelled = is_cancelled
        self._before_send = before_send
        self._heard = threading.Condition()
        self._closed = False
        self._final = False

    def is_cancelled(self) -> bool:
        return self._is_cancelled()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        with self._heard:
            self._check(response, flags)
            self._closed = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL  # before anything can go wrong
        self._before_send(response)
        with self._heard:
            if response is not None:
                self.responses.append(response)
            self._final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._heard.notify_all()

    @property
    def is_final(self) -> bool:
        with self._heard:
            return self._final

    def wait_for(self, num_responses: int) -> None:
        """Return once that many responses have been sent."""
        self._wait(lambda: len(self.responses) >= num_responses, f"{num_responses} responses")

    def wait_until_final(self) -> None:
        self._wait(lambda: self._final, "FINAL")

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        with self._heard:
            if not self._heard.wait_for(happened, PATIENCE_S):
                raise AssertionError(f"no {what} in {PATIENCE_S} s; so far {len(self.responses)} responses")

    def _check(self, response: InferenceResponse | None, flags: int) -> None:
        if self._closed:
            raise TritonModelException("a response was sent after FINAL")
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException(f"there are no response flags {flags!r}")
        if response is None:
            if not flags:
                raise TritonModelException("a response without a flag has to hold something")
        elif not response.has_error():
            self._check_tensors({tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()})

    def _check_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        if tensors.keys() != self._outputs.keys():
            raise TritonModelException(f"outputs are {sorted(tensors)}; declared are {sorted(self._outputs)}")
        for name, array in tensors.items():
            if complaint := self._outputs[name].complaint(array):
                raise TritonModelException(f"{name} {complaint}")


class InferenceTrace:
    """A request's place in a trace; of one that is not traced there is no context."""

    def __init__(self, traceparent: str | None = None) -> None:
        self._context = None if traceparent is None else json.dumps({"traceparent": traceparent})

    def get_context(self) -> str | None:
        return self._context


class InferenceRequest:
    """What `execute` is handed."""

    def __init__(
        self,
        inputs: Iterable[Tensor],
        sender: ResponseSender,
        parameters: Mapping[str, object] | None = None,
        traceparent: str | None = None,
    ) -> None:
        self._inputs, self._sender, self._parameters = list(inputs), sender, dict(parameters or {})
        self._trace = InferenceTrace(traceparent)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def trace(self) -> InferenceTrace:
        return self._trace

    def get_response_sender(self) -> ResponseSender:
        return self._sender

    def is_cancelled(self) -> bool:
        return self._sender.is_cancelled()


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


# --- metrics ----------------------------------------------------------------------------------------------


@dataclass
class Series:
    """One line, or one histogram, of /metrics."""

    kind: int
    value: float = 0.0
    observations: list[float] = field(default_factory=list)


class Page:
    """Triton's /metrics page: outlives the models that publish on it; same name and labels, same series."""

    def __init__(self) -> None:
        self.is_allowed = True  # tritonserver --allow-metrics
        self._kinds: dict[str, int] = {}
        self._series: dict[tuple[str, frozenset[tuple[str, str]]], Series] = {}

    def declare(self, name: str, kind: int) -> None:
        if not self.is_allowed:
            raise TritonModelException("metrics are not allowed")
        if self._kinds.setdefault(name, kind) != kind:
            raise TritonModelException(f"{name} has been declared as another kind")

    def series(self, name: str, labels: Mapping[str, str]) -> Series:
        key = name, frozenset(labels.items())
        return self._series.setdefault(key, Series(self._kinds[name]))

    def read(self, name: str, **labels: str) -> Series:
        """The published series with these labels, and perhaps more.

        Raises:
            LookupError: when there is none, or more than one.
        """
        found = [s for (own, has), s in self._series.items() if own == name and labels.items() <= has]
        if len(found) != 1:
            raise LookupError(f"{len(found)} series are called {name} {labels}")
        return found[0]

    def clear(self) -> None:
        self.__init__()


page = Page()


class MetricFamily:
    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2

    def __init__(self, name: str, description: str, kind: int) -> None:
        if not (name and description):
            raise TritonModelException("a metric family needs a name and a description")
        page.declare(name, kind)
        self._name, self._kind = name, kind

    def Metric(  # noqa: N802 (Triton's name)
        self, labels: Mapping[str, str] | None = None, buckets: list[float] | None = None
    ) -> "Metric":
        if (buckets is not None) != (self._kind == self.HISTOGRAM):
            raise TritonModelException("buckets are for histograms, and every histogram has them")
        return Metric(self, page.series(self._name, labels or {}))


class Metric:
    """Dies with its family, as in Triton: keep both."""

    def __init__(self, family: MetricFamily, series: Series) -> None:
        self._family, self._series = weakref.ref(family), series

    def increment(self, amount: float) -> None:
        self._expect(MetricFamily.COUNTER, MetricFamily.GAUGE)
        if amount < 0 and self._series.kind == MetricFamily.COUNTER:
            raise TritonModelException("a counter never falls")
        self._series.value += amount

    def set(self, value: float) -> None:
        self._expect(MetricFamily.GAUGE)
        self._series.value = value

    def observe(self, value: float) -> None:
        self._expect(MetricFamily.HISTOGRAM)
        self._series.observations.append(value)

    def value(self) -> float:
        self._expect(MetricFamily.COUNTER, MetricFamily.GAUGE)
        return self._series.value

    def _expect(self, *kinds: int) -> None:
        if self._family() is None:
            raise TritonModelException("the metric's family has been deleted")
        if self._series.kind not in kinds:
            raise TritonModelException("this kind of metric cannot do that")
