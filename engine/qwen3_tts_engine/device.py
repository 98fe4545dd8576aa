"""What a GPU has and a CPU does not: recorded steps, a second stream, results that are still on their way.

Everything here does nothing, or the plain thing, on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UPS = 3  # runs before a capture: libraries allocate and choose their kernels in the first ones

Step = Callable[[], None]


class CaptureDriver(Protocol):
    """Whoever can record a step."""

    def capture(self, step: Step) -> Step:
        """What it returns does again what the step does now, on the same memory.

        Raises:
            RuntimeError: when the step cannot be recorded.
        """


class CudaCapture:
    """Records CUDA graphs.

    Graphs that are replayed on one stream share one pool of memory, for no two of them run at once; what a
    step leaves behind must therefore be in buffers from outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pools: dict[torch.cuda.Stream, Any] = {}

    def capture(self, step: Step) -> Step:
        with torch.cuda.device(self._device):
            self._warm_up(step)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool()):
                step()
        return graph.replay

    def _warm_up(self, step: Step) -> None:
        aside, stream = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(stream)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                step()
        stream.wait_stream(aside)

    def _pool(self) -> Any:
        stream = torch.cuda.current_stream()
        if stream not in self._pools:
            self._pools[stream] = torch.cuda.graph_pool_handle()
        return self._pools[stream]


class Rerun:
    """Records nothing and does the step again: what replays are held against."""

    def capture(self, step: Step) -> Step:
        return step


class Graphs:
    """Runs steps, those it has recorded by replaying them.

    Args:
        driver: None: nothing is recorded.
    """

    def __init__(self, driver: CaptureDriver | None = None) -> None:
        self._driver = driver
        self._replays: dict[Hashable, Step] = {}

    @classmethod
    def on(cls, device: torch.device) -> Graphs:
        return cls(CudaCapture(device) if device.type == "cuda" else None)

    @property
    def num_recorded(self) -> int:
        return len(self._replays)

    @property
    def can_record(self) -> bool:
        return self._driver is not None

    def record(self, steps: Mapping[Hashable, Step]) -> None:
        """Record steps in the order given: the largest first, and the others fit into its memory.

        A device that fails at one has all steps run as they are, those recorded before included.
        """
        assert self._driver, "ask can_record first"
        try:
            for key, step in steps.items():
                self._replays[key] = self._driver.capture(step)
        except RuntimeError as error:
            logger.warning("CUDA graphs cannot be recorded, frames will take longer: %s", error)
            self._driver = None
            self._replays.clear()

    def run(self, key: Hashable, step: Step) -> None:
        """Do what the step does; a key is what tells it from all other steps."""
        self._replays.get(key, step)()


class Fetched:
    """A tensor's values on their way to the host; whoever reads them waits for them."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True, copy=True)  # into pinned memory
        self._arrival = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def numpy(self) -> NDArray[Any]:
        if self._arrival:
            self._arrival.synchronize()
        return self._host.numpy()


def send(values: Tensor, target: Tensor) -> None:
    """Copy from the host into a buffer, without waiting for the device."""
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)


class OwnStream:
    """A queue of a GPU's work beside the main one."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def after_the_main_one(self) -> Iterator[None]:
        """Work queued inside begins when what is on the main stream by now is done, and holds nobody up."""
        if self._stream is None:
            yield
            return
        self._stream.wait_event(torch.cuda.current_stream(self._stream.device).record_event())
        with torch.cuda.stream(self._stream):
            yield
