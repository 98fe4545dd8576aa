"""Keeps a tritonserver serving: sees that a model, or the server, no longer answers, and brings it back.

tritonserver 24.10 calls a model ready whose process is dead, never starts it again, and lets the streams that
it was speaking hang; docs/decisions/0014 says what is done about it and why. `Watch` and `BackOff` decide and
know no clock; `Supervisor` looks and acts. Its `look` is called again and again by the thread that waits for
the end, and returns at once or within the seconds a page may take: what takes long is done in between.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from qwen3_tts_engine.processes import model_processes
from qwen3_tts_engine.repairs import Repairs

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
PAGE_TIMEOUT_S = 2.0  # of anything tritonserver itself answers
SERVER_PATIENCE_S = 15.0
PROBE_EVERY_S = 5.0
PROBE_PATIENCE_S = 10.0
STALL_PATIENCE_S = 60.0  # the longest prompt is read on a CPU in less
RELOAD_TIMEOUT_S = 1800.0  # as long as a first start may take
UNLOAD_PATIENCE_S = 5.0  # it is a matter of milliseconds, unless somebody waits in the model
MISSING_LOOKS = 2  # in a row: a model that is just being loaded or unloaded passes through states
FAILING_LOOKS = 3  # in a row, without a frame between them
MANY_FAILURES = 5  # looks at which something had failed, frames or not
MOST_START_FAILURES = 3
LONGEST_PAUSE_S = 60.0
CALM_S = 600.0  # without a failure, after which earlier ones are forgotten
CANARY = "qwen3_tts_canary"


class Reason(str, Enum):
    """Why something had to be repaired."""

    DIED = "died"
    SILENT = "silent"  # a canary was not answered
    STUCK = "stuck"  # somebody is being spoken to, and no frame comes
    FAILING = "failing"  # the engine fails, and no frame is spoken


class Look(Enum):
    """What a look at a model that seems well may still ask for."""

    WELL = "well"
    PROBE = "probe"


@dataclass(frozen=True)
class Signs:
    """What there is to see of a model. Without slots it does not speak, and only its processes are known.

    Args:
        num_missing: processes that should be there and are not.
        slots: how many utterances it can speak at once.
        active: those being spoken.
        waiting: those in the model without a slot.
        frames: spoken since it was loaded.
        failed: how often its engine has failed.
    """

    num_missing: int = 0
    slots: float = 0
    active: float = 0
    waiting: float = 0
    frames: float = 0
    failed: float = 0

    @property
    def is_busy(self) -> bool:
        return self.active + self.waiting > 0

    @property
    def is_full(self) -> bool:
        return self.active + self.waiting >= self.slots


class Watch:
    """Judges one model by what every look shows.

    A model that speaks is well while its frames advance. When they do not, it is asked: a canary that nobody
    answers is silence. A full model takes no canary, because `execute` blocks; it is stuck when it is still
    for long.
    """

    def __init__(self) -> None:
        self._missing_looks = 0
        self._failing_looks = 0
        self._failures_s: deque[float] = deque(maxlen=MANY_FAILURES)
        self._frames = -1.0
        self._failed = 0.0
        self._still_since_s = 0.0
        self._probed_s: float | None = None  # when the canary that is out was sent
        self._next_probe_s = 0.0

    def look(self, now_s: float, signs: Signs) -> Look | Reason:
        """A reason means that the model is to be repaired, and this watch over."""
        self._missing_looks = self._missing_looks + 1 if signs.num_missing else 0
        if self._missing_looks >= MISSING_LOOKS:
            return Reason.DIED
        if (
            self._missing_looks or not signs.slots
        ):  # no canary for the dead: it would hold the unloading for ever
            return Look.WELL
        self._note_failures(now_s, signs)
        if self._has_moved(now_s, signs):
            return Look.WELL
        return self._fails(signs) or self._is_stuck(now_s, signs) or self._probe(now_s, signs)

    def answered(self) -> None:
        """The canary came back."""
        self._probed_s = None

    def _has_moved(self, now_s: float, signs: Signs) -> bool:
        if signs.frames == self._frames:
            return False
        self._frames = signs.frames
        self._failing_looks = 0
        self._still_since_s = now_s
        self._probed_s = None
        return True

    def _note_failures(self, now_s: float, signs: Signs) -> None:
        if signs.failed > self._failed:
            self._failing_looks += 1
            self._failures_s.append(now_s)
        self._failed = signs.failed

    def _fails(self, signs: Signs) -> Reason | None:
        """One step that raises fails everybody in it, once; a model that cannot speak fails on and on.

        One that fails only some, as after memory ran out, can wait until it speaks to nobody.
        """
        is_often = (
            len(self._failures_s) == MANY_FAILURES and self._failures_s[-1] - self._failures_s[0] < CALM_S
        )
        is_failing = self._failing_looks >= FAILING_LOOKS or (is_often and not signs.is_busy)
        return Reason.FAILING if is_failing else None

    def _is_stuck(self, now_s: float, signs: Signs) -> Reason | None:
        if not signs.is_busy:
            self._still_since_s = now_s
        return Reason.STUCK if now_s - self._still_since_s > STALL_PATIENCE_S else None

    def _probe(self, now_s: float, signs: Signs) -> Look | Reason:
        probed_s = self._probed_s  # the canary's own thread may take it back
        if signs.is_full:
            self._probed_s = None
        elif probed_s is not None:
            return Reason.SILENT if now_s - probed_s > PROBE_PATIENCE_S else Look.WELL
        elif now_s >= self._next_probe_s:
            self._probed_s = now_s
            self._next_probe_s = now_s + PROBE_EVERY_S
            return Look.PROBE
        return Look.WELL


class BackOff:
    """How long to wait before the next try: not at all, then 1, 2, 4 s and so on; a calm forgets."""

    def __init__(self) -> None:
        self._num_failures = 0
        self._last_s = 0.0

    def pause_s(self, now_s: float) -> float:
        """Something has failed now."""
        if now_s - self._last_s > CALM_S:
            self._num_failures = 0
        self._last_s = now_s
        self._num_failures += 1
        return min(LONGEST_PAUSE_S, 2.0 ** (self._num_failures - 2)) if self._num_failures > 1 else 0.0


class Server(Protocol):
    """The tritonserver that is supervised."""

    @property
    def http_port(self) -> int: ...

    @property
    def metrics_port(self) -> int: ...

    @property
    def client_host(self) -> str: ...

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
        headers: what opens the model repository's API over HTTP.
        start_timeout_s: how long a start may take.
        repairs: where they are counted.
        has_metrics: false where tritonserver was told to publish none; then only processes are watched.
        say: where repairs are reported.
        clock: seconds.
    """

    def __init__(
        self,
        server: Server,
        headers: Mapping[str, str],
        start_timeout_s: float,
        repairs: Repairs,
        has_metrics: bool = True,
        say: Callable[[str], None] = logger.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._repairs = repairs
        self._triton = Triton(server, headers)
        self._start_timeout_s = start_timeout_s
        self._has_metrics = has_metrics
        self._say = say
        self._clock = clock
        self._back_off: defaultdict[str, BackOff] = defaultdict(BackOff)
        self._repair: Iterator[None] | None = None
        self._next_look_s = 0.0
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
        self._configs: dict[str, dict[str, Any]] = {}  # of the models that are loaded
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
        for model in set(self._watches) - set(models):
            del self._watches[model]
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
        """Reload the model; but streams under way, Triton never ends: with any, start the server anew."""
        self._say(f"{model}: {reason.value}")
        return self._restart(reason) if signs.is_busy else self._reload(model, reason)

    def _restart(self, reason: Reason) -> Iterator[None]:
        """Until the server is ready again; each failed start counts as one more failure."""
        self._repairs.begin("tritonserver", reason.value)
        configs = self._configs
        for _ in range(MOST_START_FAILURES):
            began_s = self._clock()
            self._server.stop_at_once()
            yield from self._pause("tritonserver")
            self._server.start_again()
            yield from self._wait_for_start()
            if self._server.status() is None and self._server.is_ready():
                self._server.has_started()
                yield from self._in_between(lambda: self._restore(configs))
                self._repairs.end("tritonserver")
                self._say(f"tritonserver serves again, {self._clock() - began_s:.1f} s later")
                return
        raise self._server.failure(f"tritonserver could not be started {MOST_START_FAILURES} times in a row")

    def _wait_for_start(self) -> Iterator[None]:
        deadline_s = self._clock() + self._start_timeout_s
        while self._server.status() is None and not self._server.is_ready() and self._clock() < deadline_s:
            yield

    def _reload(self, model: str, reason: Reason) -> Iterator[None]:
        """Unload it at once, so that newcomers are refused; a caller who waits in it ends with the server."""
        self._repairs.begin(model, reason.value)
        began_s, config = self._clock(), self._configs[model]
        # One that hangs would be waited for.
        for pid in model_processes(self._server.pid).get(model, ()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        holds_canary = reason is Reason.SILENT  # and so shows nothing by not ending
        is_loaded = False
        if (yield from self._in_between(lambda: self._triton.unload(model, must_end=not holds_canary))):
            yield from self._pause(model)
            is_loaded = yield from self._in_between(lambda: self._triton.load(model, config))
        self._repairs.end(model)
        if is_loaded:
            self._say(f"{model} is loaded again, {self._clock() - began_s:.1f} s later")
        else:
            yield from self._restart(reason)

    def _restore(self, configs: Mapping[str, dict[str, Any]]) -> None:
        """Load what was loaded, as it was: on first use, or with a checkpoint of its own."""
        ready = self._triton.ready_models()
        for model, config in configs.items():
            if model not in ready or self._triton.config(model) != config:
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


class Triton:
    """What a supervisor asks tritonserver, over HTTP; every question raises OSError unless it is answered."""

    def __init__(self, server: Server, headers: Mapping[str, str]) -> None:
        self._server = server
        self._headers = dict(headers)

    def metrics(self) -> str:
        return self._ask("GET", "/metrics", port=self._server.metrics_port)

    def ready_models(self) -> list[str]:
        return [model for model, state in self._states().items() if state == "READY"]

    def config(self, model: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self._ask("GET", f"/v2/models/{model}/config"))
        return config

    def answers_canary(self, model: str) -> bool:
        """An input that does not exist: the model's own process says no, takes no slot and counts nothing."""
        asked = {"text": "", "stream": False, "priority": 1, CANARY: True}
        path = f"/v2/models/{model}/generate"
        status, answer = self._send("POST", path, asked, PROBE_PATIENCE_S, self._server.http_port)
        return CANARY in answer or status == 403  # locked for us, as an operator may have wanted

    def unload(self, model: str, *, must_end: bool = True) -> None:
        """The first step of a reload: `load` alone does nothing for a model whose process is dead.

        A model ends its unloading when nobody waits in it any more, which whoever waits for a dead process
        does for ever. It may be loaded again in spite of that.

        Raises:
            OSError: it does not end, and must.
        """
        self._ask("POST", f"/v2/repository/models/{model}/unload", {})
        give_up_s = time.monotonic() + UNLOAD_PATIENCE_S
        while self._states()[model] == "UNLOADING":
            if time.monotonic() >= give_up_s:
                if must_end:
                    raise OSError(f"{model}: somebody waits for the process that is gone")
                return
            time.sleep(0.1)

    def load(self, model: str, config: Mapping[str, Any]) -> None:
        asked = {"parameters": {"config": json.dumps(config)}}
        self._ask("POST", f"/v2/repository/models/{model}/load", asked, timeout_s=RELOAD_TIMEOUT_S)

    def _states(self) -> dict[str, str]:
        """Of every model there is; one that was never loaded has none."""
        index = json.loads(self._ask("POST", "/v2/repository/index", {}))
        return {model["name"]: model.get("state", "") for model in index}

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        timeout_s: float = PAGE_TIMEOUT_S,
        port: int | None = None,
    ) -> str:
        status, answer = self._send(method, path, body, timeout_s, port or self._server.http_port)
        if status != 200:
            raise OSError(f"{method} {path}: {status} {answer[:200]}")
        return answer

    def _send(self, method: str, path: str, body: Any, timeout_s: float, port: int) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._server.client_host, port, timeout=timeout_s)
        with closing(connection):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), self._headers)
                response = connection.getresponse()
                return response.status, response.read().decode(errors="replace")
            except http.client.HTTPException as error:
                raise OSError(f"{method} {path}: {error!r}") from error


SERIES = {
    "qwen3_tts_slots": "slots",
    "qwen3_tts_active_slots": "active",
    "qwen3_tts_waiting_requests": "waiting",
    "qwen3_tts_frames_total": "frames",
    "qwen3_tts_engine_failures_total": "failed",
}


def speech_series(page: str) -> dict[str, dict[str, float]]:
    """By model, what `Signs` takes from a Prometheus page."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, labels, value in re.findall(r"^(qwen3_tts_\w+)\{(.*)\} (\S+)$", page, flags=re.MULTILINE):
        model = re.search(r'model="([^"]*)"', labels)
        if model and name in SERIES:
            found[model[1]][SERIES[name]] = float(value)
    return found


def num_instances(config: Mapping[str, Any]) -> int:
    """How many processes the configuration that Triton has settled on asks for."""
    if config.get("backend") != "python":
        return 0
    groups = config.get("instance_group", [])
    return sum(group.get("count", 1) * max(1, len(group.get("gpus", []))) for group in groups)
