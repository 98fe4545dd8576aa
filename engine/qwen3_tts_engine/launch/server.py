"""A running tritonserver: its start, its drain, and what it would leave behind."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from qwen3_tts_engine.launch.command import command, server_environment
from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.machine import stack_limit
from qwen3_tts_engine.launch.ports import check_addresses
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.saying import say
from qwen3_tts_engine.launch.supervisor import Supervisor
from qwen3_tts_engine.launch.triton_http import Triton, num_busy
from qwen3_tts_engine.launch.tritonserver import Installation, LaunchError, find_tritonserver

KILL_MARGIN_S = 5
# Triton before 25.08 keeps 16 bytes of stack for each chunk of a chunked HTTP body: with the usual 8 MiB,
# half a million chunks of one byte end the server. This is enough for the 64 MB that it accepts at most.
STACK_BYTES = 192 << 20
LOG_TAIL_LINES = 40
MOST_LOG_BYTES = 64 << 20  # then the log becomes <log>.1, in place of an earlier one
SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def running_server(config: LaunchConfig) -> Iterator[Server]:
    """A server that is ready inside the block and drained after it, unless the block was interrupted.

    Raises:
        LaunchError: if it cannot start.
    """
    check(config)
    installation = find_tritonserver(config.server_dir)
    compile_models(config.model_repository)
    with ExitStack() as stack:
        server = Server.start(config, installation)
        stack.callback(server.clean_up)
        server.wait_until_ready()
        stack.push(server.drain_unless_interrupted)
        yield server


def check(config: LaunchConfig) -> None:
    if not config.model_repository.is_dir():
        raise LaunchError(f"there is no model repository at {config.model_repository}")
    if " " in str(config.model_repository.absolute()):
        # Triton's Python stub splits its arguments at spaces, and its death would go unnoticed.
        raise LaunchError(
            f"the path {config.model_repository.absolute()} has a space; Triton cannot serve from it"
        )
    check_addresses(config.addresses)


def compile_models(model_repository: Path) -> None:
    """Have every model.py's `__pycache__` there before Triton looks.

    One that a model's own first load writes is to Triton a change of the model's folder: whoever then loads
    an ensemble gets its parts loaded anew, beside those that still run. The wheel's stub cannot be told to
    write none: it ignores Python's variables in the environment. Where nothing can be written here, the stub
    cannot write either; and what does not compile will say so when it is loaded.
    """
    compileall.compile_dir(model_repository, maxlevels=2, quiet=2)  # <model>/<version>/model.py


class Server:
    """A running tritonserver, its model processes (one process group) and their shared-memory regions."""

    def __init__(self, config: LaunchConfig, installation: Installation) -> None:
        self.config = config
        self.drained = False
        self._installation = installation
        self._triton = Triton(config, config.access.http_headers)
        self._is_serving = False
        self.process = self._launch()

    @classmethod
    def start(cls, config: LaunchConfig, installation: Installation) -> Server:
        say(f"starting {installation.binary}, its log is {config.log_path}")
        if config.access.key_file:
            say(f"the key of its restricted APIs is in {config.access.key_file}")
        return cls(config, installation)

    def stop_at_once(self) -> None:
        self._is_serving = False
        self.clean_up()

    def start_again(self) -> None:
        """After a stop, on the same ports."""
        self.process = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        config = self.config
        self._regions_prefix = f"triton_python_backend_shm_region_{uuid.uuid4().hex[:12]}_"
        config.log_path.parent.mkdir(parents=True, exist_ok=True)
        with config.log_path.open("ab", buffering=0) as log, stack_limit(STACK_BYTES):
            self._log_start = log.tell() if config.log_path.is_file() else 0
            return subprocess.Popen(
                command(config, self._installation, self._regions_prefix),
                env=server_environment(config.environment, self._installation),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C reaches only the launcher, one kill reaches every model process.
                start_new_session=True,
            )

    def supervisor(self, repairs: Repairs) -> Supervisor:
        """What keeps it serving."""
        return Supervisor(self, self._triton, self.config.ready_timeout_s, repairs, self._has_metrics, say)

    @property
    def pid(self) -> int:
        return self.process.pid

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self.process.poll()

    @property
    def client_host(self) -> str:
        return self.config.client_host

    @property
    def http_port(self) -> int:
        return self.config.http_port

    @property
    def grpc_port(self) -> int:
        return self.config.grpc_port

    @property
    def metrics_port(self) -> int:
        return self.config.metrics_port

    @property
    def log_path(self) -> Path:
        return self.config.log_path

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.config.ready_timeout_s
        while not self.is_ready():
            if self.process.poll() is not None:
                raise self.failure("tritonserver could not start")
            if time.monotonic() > deadline:
                raise self.failure(f"tritonserver was not ready within {self.config.ready_timeout_s:g} s")
            time.sleep(0.05)
        self.has_started()

    def is_ready(self) -> bool:
        try:
            self._triton.check_ready()
            if self._has_metrics:
                self._triton.metrics()
        except OSError:
            return False
        return True

    def has_started(self) -> None:
        """From now on there may be streams in flight, which a drain lets end."""
        self._is_serving = True

    def drain(self) -> None:
        """Ask tritonserver to finish what it is serving and wait, at most for the exit timeout."""
        if not self._is_serving:  # it is being started again, and speaks to nobody
            self.drained = True
        elif self.process.poll() is None:
            self.process.terminate()
            self.drained = self._has_drained()

    def drain_unless_interrupted(self, raised: type[BaseException] | None, *_: object) -> None:
        if raised is not KeyboardInterrupt:
            self.drain()

    def clean_up(self) -> None:
        """Kill what is left of the process group; remove the shared memory that killed processes leave."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for region in self.shared_memory_regions():
            region.unlink(missing_ok=True)

    def shared_memory_regions(self) -> list[Path]:
        return sorted(SHARED_MEMORY.glob(f"{self._regions_prefix}*"))

    def bound_log(self) -> None:
        """Keep its last bytes and those before them: the server goes on at the end of an empty file."""
        if self.log_path.is_file() and self.log_path.stat().st_size > MOST_LOG_BYTES:
            with suppress(OSError):  # on a full disk the earlier ones are lost; the server is not
                shutil.copyfile(self.log_path, self.log_path.with_name(f"{self.log_path.name}.1"))
            os.truncate(self.log_path, 0)
            self._log_start = 0

    def failure(self, what: str) -> LaunchError:
        return LaunchError(f"{what}; the end of {self.log_path}:\n{self._log_tail()}")

    def _has_drained(self) -> bool:
        """Idle connections and open streams hold Triton's own shutdown; they need not hold ours."""
        last_busy = time.monotonic()
        deadline = last_busy + self.config.exit_timeout_s + KILL_MARGIN_S
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=0.5) == 0
            if self._num_busy() != 0:
                last_busy = time.monotonic()
            elif time.monotonic() - last_busy > self.config.idle_grace_s:
                return True
        return False

    def _num_busy(self) -> float | None:
        try:
            return num_busy(self._triton.metrics())
        except OSError:
            return None

    @property
    def _has_metrics(self) -> bool:
        """Triton opens this port last, unless it was told not to."""
        return "--allow-metrics=false" not in self.config.extra_args

    def _log_tail(self) -> str:
        if not self.log_path.is_file():  # /dev/stdout in a container: the lines are on the screen already
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])
