"""What the speech models of the repository share; a model.py names its task and inherits the rest."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from qwen3_tts_engine import metrics as families
from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import ConfigError, EngineFailed, SpeechError
from qwen3_tts_engine.launch.triton_http import CANARY
from qwen3_tts_engine.metrics import Metrics, NoMetrics
from qwen3_tts_engine.sequence import Sequence
from qwen3_tts_engine.triton.errors import outcome
from qwen3_tts_engine.triton.loading import device, log_to_stderr, read_config
from qwen3_tts_engine.triton.metrics import PublishedMetrics
from qwen3_tts_engine.triton.reading import FindVoice, RequestReader, RowRequest, naming_row
from qwen3_tts_engine.triton.responses import Courier, ResponseStream, RowSink
from qwen3_tts_engine.triton.tracing import begin_tracing

# How long the engine's thread may keep the interpreter while another wants it. Python's 5 ms is as long as
# a frame of a fast model; Triton's batcher naps for 500 ms when `execute` is busy (docs/decisions/0008).
SWITCH_INTERVAL_S = 0.0005

logger = logging.getLogger(__name__)


class SpeechModel:
    """A decoupled Triton model around one engine."""

    task: str
    config_kind: type[EngineConfig] = EngineConfig

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint and speak to nobody first; Triton calls the model ready after that."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        directory = Path(args["model_repository"])
        try:
            log_to_stderr()
            config = read_config(self.config_kind, args, self.task)
            self.engine = Engine.load(config, self.task, directory, device(args))
            saved_voices = self._saved_voices(config, directory)
        except ConfigError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        self.reader = RequestReader(self.task, self.engine.defaults, saved_voices)
        self.engine.warm_up()
        self.metrics = _metrics(args)
        self.tracing = begin_tracing(args["model_name"], os.environ)
        self.courier = Courier()
        self.engine.start(self.metrics)
        self._arrivals: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._reception = threading.Thread(target=self._receive_forever, name="reception", daemon=True)
        self._reception.start()

    def execute(self, requests: list[Any]) -> None:
        """Take the requests and return; audio follows through their response senders.

        Quickly, because Triton looks for the next request only now and then while this runs; and not at all
        while the engine is full, so that the backlog stays in Triton's queue, where its policies work.
        """
        self.engine.announce(len(requests))
        self._arrivals.put(requests)
        self.engine.wait_for_room()

    def is_ready(self) -> bool:
        """Whether it still takes requests and speaks them; Triton 26.03 and later ask."""
        return self._reception.is_alive() and self.engine.is_serving and self.courier.is_working

    def finalize(self) -> None:
        """Finish what is being spoken, then let go."""
        self._arrivals.put(None)
        self._reception.join()
        self.engine.close()
        self.courier.close()
        if isinstance(self.metrics, PublishedMetrics):
            self.metrics.close()
        self.tracing.close()

    def _saved_voices(self, config: EngineConfig, directory: Path) -> FindVoice | None:
        """Where `voice` is looked up; a checkpoint that has no such input has no such place."""
        return None

    def _receive_forever(self) -> None:
        while (requests := self._arrivals.get()) is not None:
            self._let_in(requests)

    def _let_in(self, requests: list[Any]) -> None:
        """Bad requests are answered before any good one waits for a slot."""
        received = [self._receive(request) for request in requests]
        self.engine.expect(sum(map(len, received)))
        for sequences in received:
            try:
                for sequence in sequences:
                    self._submit(sequence)
            finally:
                self.engine.settle()

    def _receive(self, request: Any) -> list[Sequence]:
        """Check every row before any of them takes a resource."""
        stream = ResponseStream(request.get_response_sender(), self.courier, self._counter_of(request))
        try:
            rows = self.reader.read(request)
            sequences = self._prepare(rows, stream.open(rows))
            for sequence in sequences:
                self.tracing.follow(sequence, request)
            return sequences
        except SpeechError as error:
            stream.fail(error)
        except Exception as error:
            logger.exception("a request could not be read")
            stream.fail(EngineFailed(f"the request could not be read: {error}"))
        return []

    def _prepare(self, rows: list[RowRequest], sinks: list[RowSink]) -> list[Sequence]:
        sequences = []
        for i, (row, sink) in enumerate(zip(rows, sinks, strict=True)):
            with naming_row(i, len(rows)):
                sequences.append(self.engine.prepare(row.speech, sink))
        return sequences

    def _submit(self, sequence: Sequence) -> None:
        try:
            self.engine.submit(sequence)
        except SpeechError as error:
            sequence.sink.close(error)  # and with it the rows that are not in yet: nobody listens to them

    def _counter_of(self, request: Any) -> Callable[[SpeechError | None], None]:
        """A canary is nobody's request."""
        is_canary = CANARY in request.parameters()
        return (lambda error: None) if is_canary else self._count

    def _count(self, error: SpeechError | None) -> None:
        self.metrics.add(families.REQUESTS, 1, outcome(error))


def _metrics(args: Mapping[str, str]) -> Metrics:
    try:
        return PublishedMetrics(args["model_name"], args["model_version"])
    except pb_utils.TritonModelException as error:
        logger.warning("nothing is published on /metrics: %s", error)  # tritonserver --allow-metrics=false
        return NoMetrics()
