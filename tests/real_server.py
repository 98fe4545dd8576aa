"""A real tritonserver for a test, and the proof that it left nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.server import Server, running_server

if TYPE_CHECKING:
    from typing_extensions import Self

ROOT = Path(__file__).parents[1]


def on_free_ports(environment: Mapping[str, str] | None = None, **fields: Any) -> LaunchConfig:
    http_port, grpc_port, metrics_port = free_ports()
    config = LaunchConfig(
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        ready_timeout_s=240,
        exit_timeout_s=20,
        idle_grace_s=2,
        server_dir=ROOT / ".server",
        environment={**os.environ, **(environment or {})},
    )
    return replace(config, **fields)


@contextmanager
def clean_server(config: LaunchConfig) -> Iterator[Server]:
    with running_server(config) as server:
        footprint = Footprint(server.process.pid)
        yield server
    footprint.assert_gone()


class Footprint:
    """The processes and shared-memory regions of a running tritonserver."""

    def __init__(self, tritonserver_pid: int) -> None:
        self.group = os.getpgid(tritonserver_pid)
        flags = psutil.Process(tritonserver_pid).cmdline()
        self._regions_prefix = next(flag for flag in flags if "shm-region-prefix-name" in flag).split("=")[-1]

    def processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def stubs(self) -> list[psutil.Process]:
        return [process for process in self.processes() if process.pid != self.group]

    def stubs_of(self, model: str) -> list[psutil.Process]:
        """The processes of one model: each is started with the path of its model.py."""
        return [stub for stub in self.stubs() if f"/{model}/1/model.py" in _command_line(stub)]

    def regions(self) -> list[Path]:
        return sorted(Path("/dev/shm").glob(f"{self._regions_prefix}*"))

    def assert_gone(self) -> None:
        wait_until(lambda: not self.processes(), "the processes of the server end")
        assert self.regions() == []

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == self.group and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False


class Launcher:
    """The launcher as an operator runs it: a process, what it says, how it ends."""

    module = "qwen3_tts_engine.launch.launcher"

    def __init__(self, repository: Path, directory: Path, *flags: str, **environment: str) -> None:
        self.config = on_free_ports(log_path=directory / "tritonserver.log")
        self._command = [
            *(sys.executable, "-m", self.module),
            *("--model-repository", str(repository), "--server-dir", str(self.config.server_dir)),
            *("--log-path", str(self.config.log_path), "--exit-timeout-s", "60"),
            *flags,
        ]
        [self.supervisor_port] = free_ports(1)
        ports = {name: str(port) for name, port in self.config.ports.items()}
        ports["SUPERVISOR_PORT"] = str(self.supervisor_port)
        self._environment = {**os.environ, **ports, **environment}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, env=self._environment, stderr=subprocess.PIPE, text=True
        )
        self.read_until("ready: ")
        self.footprint = Footprint(self.child("tritonserver").pid)
        return self

    def __exit__(self, *_: object) -> None:
        for _ in range(2):  # the second cuts the drain short
            self.process.terminate()
        self.process.communicate()

    def child(self, name: str) -> psutil.Process:
        """The process that it started whose command line has this word."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if name in _command_line(child))

    def read_until(self, words: str) -> str:
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if words in line:
                return said
        raise AssertionError(f"the launcher never said {words!r}, but:\n{said}")

    def terminate(self) -> None:
        self.process.terminate()
        self.read_until("draining")

    def log(self) -> str:
        return self.config.log_path.read_text()


class System(Launcher):
    """The whole system as an operator runs it."""

    module = "qwen3_tts_engine.launch.system"

    def __init__(self, repository: Path, directory: Path, **environment: str) -> None:
        [self.port] = free_ports(1)
        super().__init__(
            repository, directory, "--idle-grace-s", "0", **{"PORT": str(self.port), **environment}
        )

    def __enter__(self) -> Self:
        super().__enter__()
        self.gateway = self.child("qwen3_tts_gateway")
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_healthy(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health").status_code == 200
        return False

    def finds_triton(self) -> bool:
        return httpx.get(f"{self.url}/health/models").json()["triton"] == "ready"

    def rest(self) -> str:
        """What it says until its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def assert_gone(self) -> None:
        self.footprint.assert_gone()
        wait_until(lambda: not self.gateway.is_running(), "the gateway's process ends")


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(0.02)
