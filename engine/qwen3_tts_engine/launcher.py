"""Starts the real tritonserver on the model repository, watches it, drains it and leaves nothing behind.

    python -m qwen3_tts_engine.launcher [--model-repository model_repository] [-- tritonserver flags]

Addresses, ports and preloading come from the environment and from `.env` (see `.env.example`).
"""

from __future__ import annotations

import argparse
import compileall
import http.client
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

from dotenv import dotenv_values

from qwen3_tts_engine.access import VARIABLE as KEY_VARIABLE
from qwen3_tts_engine.access import Access, access_from
from qwen3_tts_engine.collector import trace_flags
from qwen3_tts_engine.config import CHECKPOINT_VARIABLES, SWITCHES
from qwen3_tts_engine.repairs import Repairs, page_of
from qwen3_tts_engine.supervisor import Supervisor
from qwen3_tts_engine.tritonserver import Installation, LaunchError, find_tritonserver
from qwen3_tts_engine.watching import STOP_SIGNALS, Pulse, StopRequest, watch_until

LONGEST_UTTERANCE_S = 656  # 8191 frames of 80 ms, spoken no slower than real time
KILL_MARGIN_S = 5
RESPONSE_CACHE_BYTES = 128 << 20  # for models of an operator's own; ours are not cached (decision 9)
# Triton before 25.08 keeps 16 bytes of stack for each chunk of a chunked HTTP body: with the usual 8 MiB,
# half a million chunks of one byte end the server. This is enough for the 64 MB that it accepts at most.
STACK_BYTES = 192 << 20
LOG_TAIL_LINES = 40
MOST_LOG_BYTES = 64 << 20  # then the log becomes <log>.1, in place of an earlier one
SHARED_MEMORY = Path("/dev/shm")
SUPERVISOR_PORT = 8003
PORT_VARIABLES = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "PORT")
Address: TypeAlias = tuple[str, int]
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
OPTIONS = {  # of the command line; each is a field of LaunchConfig
    "model_repository": "the models to serve",
    "server_dir": "where the server of the nvidia-pytriton wheel is laid out",
    "log_path": "tritonserver's log; /dev/stdout in a container",
    "ready_timeout_s": "how long the start may take",
    "exit_timeout_s": "how long streams in flight may hold the drain",
    "idle_grace_s": "how long open connections may hold the drain when nothing is being spoken",
}
PATHS = (*CHECKPOINT_VARIABLES.values(), "QWEN_TTS_TOKENIZER", "VOICE_STORE", "MODEL_CACHE_DIR")


@dataclass(frozen=True)
class LaunchConfig:
    """One server. `environment` is what its model processes see."""

    model_repository: Path = Path("model_repository")
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    supervisor_port: int = SUPERVISOR_PORT
    preload_models: bool = True
    verbose: bool = False
    ready_timeout_s: float = 1800.0  # a first start may download weights
    exit_timeout_s: int = LONGEST_UTTERANCE_S + 4
    idle_grace_s: float = 30.0
    server_dir: Path = Path(".server")
    log_path: Path = Path(".server/logs/tritonserver.log")
    access: Access = field(default_factory=Access)
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def ports(self) -> dict[str, int]:
        return {
            "TRITON_HTTP_PORT": self.http_port,
            "TRITON_GRPC_PORT": self.grpc_port,
            "TRITON_METRICS_PORT": self.metrics_port,
        }

    @property
    def addresses(self) -> dict[str, Address]:
        return {name: (self.host, port) for name, port in self.ports.items()}

    @property
    def client_host(self) -> str:
        """An address that reaches the server from this machine."""
        return reachable(self.host)


def reachable(host: str) -> str:
    """Where a service that listens on this address is reached from the same machine."""
    return ANY_ADDRESS.get(host, host)


def serve(config: LaunchConfig) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP, then drain; a second signal stops at once."""
    check_addresses(config.addresses | {"SUPERVISOR_PORT": (config.host, config.supervisor_port)})
    pulse = Pulse()
    # The page comes first: a probe of `/live` must not end a start that takes its time.
    with showing_repairs(config, pulse) as repairs, running_server(config) as server:
        stop = StopRequest()
        say(
            f"ready: http {server.http_port}, grpc {server.grpc_port}, metrics {server.metrics_port},"
            f" supervisor {config.supervisor_port}"
        )
        watch_until(stop, pulse, server.supervisor(repairs))
        say("draining: streams in flight are finished, new requests refused; a second signal stops at once")
    if not server.drained:
        raise server.failure("the drain did not end well")
    return 0


@contextmanager
def showing_repairs(config: LaunchConfig, pulse: Pulse) -> Iterator[Repairs]:
    """Counts what is repaired, with its page open."""
    repairs = Repairs()
    with page_of(repairs, config.host, config.supervisor_port, pulse):
        yield repairs


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


class Server:
    """A running tritonserver, its model processes (one process group) and their shared-memory regions."""

    def __init__(self, config: LaunchConfig, installation: Installation) -> None:
        self.config = config
        self.drained = False
        self._installation = installation
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
        headers = self.config.access.http_headers
        return Supervisor(self, headers, self.config.ready_timeout_s, repairs, self._has_metrics, say)

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
        ready = self._get(self.http_port, "/v2/health/ready") is not None
        return ready and (not self._has_metrics or self._get(self.metrics_port, "/metrics") is not None)

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
        """Requests being spoken or waiting, by the models' own gauges; None where no model tells."""
        page = self._get(self.metrics_port, "/metrics")
        return None if page is None else num_busy(page)

    @property
    def _has_metrics(self) -> bool:
        """Triton opens this port last, unless it was told not to."""
        return "--allow-metrics=false" not in self.config.extra_args

    def _get(self, port: int, path: str) -> str | None:
        """A page of the server, None unless it answers 200."""
        connection = http.client.HTTPConnection(self.config.client_host, port, timeout=2)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.read().decode() if response.status == 200 else None
        return None

    def _log_tail(self) -> str:
        if not self.log_path.is_file():  # /dev/stdout in a container: the lines are on the screen already
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


def num_busy(metrics: str) -> float | None:
    """Sum of the gauges `qwen3_tts_active_slots` and `qwen3_tts_waiting_requests` on a Prometheus page."""
    series = re.findall(
        r"^qwen3_tts_(?:active_slots|waiting_requests)(?:\{.*\})? (\S+)$", metrics, flags=re.MULTILINE
    )
    return sum(map(float, series)) if series else None


def command(config: LaunchConfig, installation: Installation, regions_prefix: str) -> list[str]:
    addresses = (f"--{service}-address={config.host}" for service in ("http", "grpc", "metrics"))
    return [
        str(installation.binary),
        f"--model-repository={config.model_repository}",
        "--model-control-mode=explicit",
        *(["--load-model=*"] if config.preload_models else []),
        # Completing the configuration would import every model.py, and with it torch, twice.
        "--disable-auto-complete-config",
        # Each load imports torch: more at once than there are cores only makes all of them late.
        f"--model-load-thread-count={min(4, num_available_cores())}",
        *addresses,
        f"--http-port={config.http_port}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-port={config.metrics_port}",
        # Clients ping every 30 s; by default the server answers the third ping without data with GOAWAY.
        "--grpc-keepalive-permit-without-calls=1",
        "--grpc-http2-min-recv-ping-interval-without-data=10000",
        f"--cache-config=local,size={RESPONSE_CACHE_BYTES}",
        f"--exit-timeout-secs={config.exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={regions_prefix}",
        *installation.flags,
        *(["--log-verbose=1"] if config.verbose else []),
        *config.access.flags,
        *trace_flags(config.environment),
        *config.extra_args,
    ]


def server_environment(given: Mapping[str, str], installation: Installation) -> dict[str, str]:
    folders = [*map(str, installation.library_path), given.get("LD_LIBRARY_PATH", "")]
    given = {name: value for name, value in given.items() if name != KEY_VARIABLE}  # not for the models
    given |= {name: _from_here(given[name], name) for name in PATHS if name in given}
    return {
        "OMP_NUM_THREADS": str(num_available_cores()),
        # Idle threads of one model process must not spin on the cores that another one computes on.
        "OMP_WAIT_POLICY": "passive",
        **({"HF_HOME": given["MODEL_CACHE_DIR"]} if "MODEL_CACHE_DIR" in given else {}),
        **given,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders)),
        # The stub finds this interpreter's packages through the first python3 on PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", os.defpath)]),
    }


def _from_here(value: str, variable: str) -> str:
    """A path that starts where the launcher was started; each model would start it in its own folder.

    A hub id is no path unless there is such a directory, and a URL is none.
    """
    path = Path(value).expanduser()
    is_path = path.is_dir() if variable.startswith("QWEN_TTS_") else ":" not in value
    return str(path.absolute()) if is_path else value


def compile_models(model_repository: Path) -> None:
    """Have every model.py's `__pycache__` there before Triton looks.

    One that a model's own first load writes is to Triton a change of the model's folder: whoever then loads
    an ensemble gets its parts loaded anew, beside those that still run. The wheel's stub cannot be told to
    write none: it ignores Python's variables in the environment. Where nothing can be written here, the stub
    cannot write either; and what does not compile will say so when it is loaded.
    """
    compileall.compile_dir(model_repository, maxlevels=2, quiet=2)  # <model>/<version>/model.py


def num_available_cores(cgroup_quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity mask, and in a container also the CPU quota."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no cgroup v2, or the quota is "max"
        quota, period = map(int, cgroup_quota.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)


@contextmanager
def stack_limit(wanted_bytes: int) -> Iterator[None]:
    """Processes started in the block get this stack, as far as the hard limit lets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    # "unlimited" means 2 MiB for threads, so it is not more than what is wanted here.
    if soft == resource.RLIM_INFINITY or soft < wanted_bytes:
        bounded = wanted_bytes if hard == resource.RLIM_INFINITY else min(wanted_bytes, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (bounded, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def check(config: LaunchConfig) -> None:
    if not config.model_repository.is_dir():
        raise LaunchError(f"there is no model repository at {config.model_repository}")
    if " " in str(config.model_repository.absolute()):
        # Triton's Python stub splits its arguments at spaces, and its death would go unnoticed.
        raise LaunchError(
            f"the path {config.model_repository.absolute()} has a space; Triton cannot serve from it"
        )
    check_addresses(config.addresses)


def check_addresses(addresses: Mapping[str, Address]) -> None:
    """Refuse a port that is given twice or in use, by the name of its variable."""
    for (name, (_, port)), (other_name, (_, other_port)) in combinations(addresses.items(), 2):
        if port == other_port:
            raise LaunchError(f"{name} and {other_name} are both {port}; each needs a port of its own")
    for name, (host, port) in addresses.items():
        _check_port(name, host, port)


def _check_port(name: str, host: str, port: int) -> None:
    try:
        with _bound_socket(host, port):
            pass
    except OSError as error:
        raise LaunchError(
            f"{name}={port}: cannot listen on {host}: {error.strerror}; set {name} to a free port"
        ) from error


def _bound_socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # Connections of an earlier server that are still closing do not make a port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def free_ports(count: int = 3) -> tuple[int, ...]:
    """Ports nobody listens on now, all different."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(_bound_socket("127.0.0.1", 0)) for _ in range(count)]
        return tuple(listener.getsockname()[1] for listener in listeners)


def environment_with(dotenv: Path) -> dict[str, str]:
    """The environment over `dotenv`; an empty value means the same as none, in either."""
    merged = {**dotenv_values(dotenv), **os.environ}
    return {name: value for name, value in merged.items() if value}


def config_from(environment: Mapping[str, str], arguments: argparse.Namespace) -> LaunchConfig:
    return LaunchConfig(
        host=environment.get("TRITON_HOST", "127.0.0.1"),
        http_port=port_from(environment, "TRITON_HTTP_PORT", 8000),
        grpc_port=port_from(environment, "TRITON_GRPC_PORT", 8001),
        metrics_port=port_from(environment, "TRITON_METRICS_PORT", 8002),
        supervisor_port=_supervisor_port(environment),
        preload_models=_switch(environment, "PRELOAD_MODELS", True),
        verbose=environment.get("LOG_LEVEL", "").upper() == "DEBUG",
        access=access_from(environment, arguments.server_dir),
        environment=environment,
        **vars(arguments),
    )


def _supervisor_port(environment: Mapping[str, str]) -> int:
    """What was asked for; else the usual one, or any other where that is taken: nobody was promised it."""
    if "SUPERVISOR_PORT" in environment:
        return port_from(environment, "SUPERVISOR_PORT", SUPERVISOR_PORT)
    if str(SUPERVISOR_PORT) not in (environment.get(name) for name in PORT_VARIABLES):
        with suppress(OSError), _bound_socket(environment.get("TRITON_HOST", "127.0.0.1"), SUPERVISOR_PORT):
            return SUPERVISOR_PORT
    return free_ports(1)[0]


def port_from(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise LaunchError(f"{name}={value}: not a port number, 1 to 65535")
    return int(value)


def _switch(environment: Mapping[str, str], name: str, default: bool) -> bool:
    value = environment.get(name, str(default)).lower()
    if value not in SWITCHES:
        raise LaunchError(f"{name}={value}: neither true nor false")
    return SWITCHES[value]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    end = list(argv).index("--") if "--" in argv else len(argv)
    extra_args = tuple(argv[end + 1 :])
    return _parser(LaunchConfig()).parse_args(argv[:end], argparse.Namespace(extra_args=extra_args))


def _parser(defaults: LaunchConfig) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qwen3_tts_engine.launcher",
        description="Run tritonserver on the model repository.",
        epilog="Arguments after -- go to tritonserver unchanged.",
    )
    for name, meaning in OPTIONS.items():
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{meaning} (default: {default})",
        )
    return parser


def main(argv: Sequence[str] | None = None, serve: Callable[[LaunchConfig], int] = serve) -> int:
    for name in STOP_SIGNALS:  # until there is a server to drain, each ends the start
        signal.signal(name, signal.default_int_handler)
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        return serve(config_from(environment_with(Path(".env")), arguments))
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:  # during the start, or a second time
        return 130


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
