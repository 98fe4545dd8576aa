"""Keeps a tritonserver serving: sees that a model, or the server, no longer answers, and brings it back.

tritonserver 24.10 calls a model ready whose process is dead, never starts it again, and lets the streams that
it was speaking hang; docs/decisions/0014 says what is done about it and why. `Watch` and `BackOff` decide and
know no clock; `Supervisor` looks and acts. Its `look` is called again and again by the thread that waits for
the end, and returns at once or within the seconds a page may take: what takes long is done in between.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from qwen3_tts_engine.launch.judging import BackOff, Look, Reason, Signs, Watch
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.triton_http import Triton, speech_series
from qwen3_tts_engine.processes import model_processes, num_instances

LOOK_EVERY_S = 1.0
SERVER_PATIENCE_S = 15.0
MOST_START_FAILURES = 3


class Server(Protocol):
    """The tritonserver that is supervised."""

    @property
    def pid(self) -> int:
        """Of the server; its process group has the same."""

    def status(self) -> int | None:
        """The exit status, None while it runs."""

    def is_ready(self) -> bool: ...

    def stop_at_once(self) -> None:
        """Kill what is left of it, and with it every stream."""

    def start_again(self) -> None:
        """On the same ports."""

    def has_started(self) -> None:
        """It is ready again."""

    def failure(self, what: str) -> Exception:
        """What to raise when nothing helps: with the end of its log."""

    def bound_log(self) -> None: ...


class Supervisor:
    """Watches one server and its models.

    Args:
        server: what is watched.
        triton: what answers there, the model repository's API among it.
        start_timeout_s: how long a start may take.
        repairs: where they are counted.
        has_metrics: false where tritonserver was told to publish none; then only processes are watched.
        say: where repairs are reported.
        clock: seconds.
    """

    def __init__(
        self,
        server: Server,
        triton: Triton,
        start_timeout_s: float,
        repairs: Repairs,
        has_metrics: bool,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._repairs = repairs
        self._triton = triton
        self._start_timeout_s = start_timeout_s
        self._has_metrics = has_metrics
        self._say = say
        self._clock = clock
        self._back_off: defaultdict[str, BackOff] = defaultdict(BackOff)
        self._repair: Iterator[None] | None = None
        self._next_look_s = 0.0
        self._configs: dict[str, dict[str, Any]] = {}  # of the models that the last look found loaded
        self._begin_to_watch()

    def look(self) -> None:
        """One look, or one step of the repair that is under way.

        Raises:
            LaunchError: the server cannot be started any more.
        """
        if self._repair is not None:
            if next(self._repair, self) is self:
                self._repair = None
                self._begin_to_watch()
        elif self._server.status() is not None:
            self._say(f"tritonserver ended by itself with status {self._server.status()}")
            self._repair = self._restart(Reason.DIED)
        elif self._clock() >= self._next_look_s:
            self._repair = self._inspect()
            self._server.bound_log()
            self._next_look_s = self._clock() + LOOK_EVERY_S

    def _begin_to_watch(self) -> None:
        self._watches: defaultdict[str, Watch] = defaultdict(Watch)
        self._answered_s = self._clock()

    # --- seeing -----------------------------------------------------------------------------------------

    def _inspect(self) -> Iterator[None] | None:
        """The repair that is needed, if any."""
        processes = model_processes(self._server.pid)  # before Triton says what should be there
        try:
            page = speech_series(self._triton.metrics()) if self._has_metrics else {}
            models = self._triton.ready_models()
        except (OSError, ValueError) as error:
            return self._judge_server(error)
        self._answered_s = self._clock()
        self._forget_all_but(models)
        for model in models:
            num_missing = self._num_missing(model, len(processes.get(model, ())))
            signs = Signs(num_missing, **page.get(model, {}))
            if (verdict := self._watches[model].look(self._clock(), signs)) is Look.PROBE:
                self._send_canary(model)
            elif isinstance(verdict, Reason):
                return self._mend(model, verdict, signs)
        return None

    def _forget_all_but(self, models: list[str]) -> None:
        for model in {*self._watches, *self._configs} - set(models):
            self._watches.pop(model, None)
            self._configs.pop(model, None)

    def _judge_server(self, error: Exception) -> Iterator[None] | None:
        silence_s = self._clock() - self._answered_s
        if silence_s < SERVER_PATIENCE_S:
            return None
        self._say(f"tritonserver has not answered for {silence_s:.0f} s: {error}")
        return self._restart(Reason.SILENT)

    def _num_missing(self, model: str, num_processes: int) -> int:
        """Ask Triton how many there should be only when there are fewer than it said last."""
        if num_processes < num_instances(self._configs.get(model, {})) or model not in self._configs:
            with suppress(OSError, ValueError):
                self._configs[model] = self._triton.config(model)
        return max(0, num_instances(self._configs.get(model, {})) - num_processes)

    def _send_canary(self, model: str) -> None:
        watch = self._watches[model]

        def send() -> None:
            with suppress(OSError):
                if self._triton.answers_canary(model):
                    watch.answered()

        threading.Thread(target=send, name="canary", daemon=True).start()

    # --- acting -----------------------------------------------------------------------------------------

    def _mend(self, model: str, reason: Reason, signs: Signs) -> Iterator[None]:
        """Reload the model; but streams under way, Triton never ends: with any, start the server anew.

        Of a silent model no gauge tells who has come since it fell silent.
        """
        self._say(f"{model}: {reason.value}")
        has_streams = signs.is_busy or reason is Reason.SILENT
        return self._restart(reason) if has_streams else self._reload(model, reason)

    def _restart(self, reason: Reason) -> Iterator[None]:
        """Until the server has again what it had; each failed start counts as one more failure."""
        self._repairs.begin("tritonserver", reason.value)
        for _ in range(MOST_START_FAILURES):
            began_s = self._clock()
            self._server.stop_at_once()
            yield from self._pause("tritonserver")
            self._server.start_again()
            yield from self._wait_for_start()
            if self._server.status() is None and self._server.is_ready():
                self._server.has_started()
                if (yield from self._restore()):
                    self._repairs.end("tritonserver")
                    self._say(f"tritonserver serves again, {self._clock() - began_s:.1f} s later")
                    return
        raise self._server.failure(f"tritonserver could not be started {MOST_START_FAILURES} times in a row")

    def _wait_for_start(self) -> Iterator[None]:
        deadline_s = self._clock() + self._start_timeout_s
        while self._server.status() is None and not self._server.is_ready() and self._clock() < deadline_s:
            yield

    def _reload(self, model: str, reason: Reason) -> Iterator[None]:
        """Unload it at once, so that newcomers are refused, and load it after the pause."""
        self._repairs.begin(model, reason.value)
        began_s, config = self._clock(), self._configs[model]
        # One that hangs would be waited for.
        for pid in model_processes(self._server.pid).get(model, ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        is_loaded = False
        if (yield from self._in_between(lambda: self._triton.unload(model))):
            yield from self._pause(model)
            is_loaded = yield from self._in_between(lambda: self._triton.load(model, config))
        self._repairs.end(model)
        if is_loaded:
            self._say(f"{model} is loaded again, {self._clock() - began_s:.1f} s later")
        else:
            yield from self._restart(reason)

    def _restore(self) -> Generator[None, None, bool]:
        """Load what was loaded; one that cannot be keeps no other from it. False: the server died of it."""
        for model, config in self._configs.items():
            is_loaded = yield from self._in_between(partial(self._load_as_it_was, model, config))
            if (status := self._server.status()) is not None:
                self._say(f"tritonserver ended with status {status} while {model} was loaded again")
                return False
            if not is_loaded:
                self._say(f"{model} could not be loaded again")
        return True

    def _load_as_it_was(self, model: str, config: Mapping[str, Any]) -> None:
        """On first use, or with a checkpoint of its own; most are there already, with the server's start."""
        if model not in self._triton.ready_models() or self._triton.config(model) != config:
            self._triton.load(model, config)

    def _in_between(self, act: Callable[[], None]) -> Generator[None, None, bool]:
        """Whether it went well; it takes its time on a thread of its own, while the server lives."""
        failures: list[Exception] = []

        def run() -> None:
            try:
                act()
            except (OSError, ValueError, KeyError) as error:
                failures.append(error)

        thread = threading.Thread(target=run, name="repair", daemon=True)
        thread.start()
        while thread.is_alive() and self._server.status() is None:
            yield
        for error in failures:
            self._say(f"error: {error}")
        return not thread.is_alive() and not failures

    def _pause(self, what: str) -> Iterator[None]:
        pause_s = self._back_off[what].pause_s(self._clock())
        self._say(f"bringing {what} back" + (f" in {pause_s:g} s" if pause_s else ""))
        until_s = self._clock() + pause_s
        while self._clock() < until_s:
            yield
