"""What is launched: out of the command line, the environment and `.env`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

from qwen3_tts_engine.config import SWITCHES
from qwen3_tts_engine.launch.access import Access, access_from
from qwen3_tts_engine.launch.ports import Address, bound_socket, free_ports, port_from, reachable
from qwen3_tts_engine.launch.tritonserver import LaunchError

LONGEST_UTTERANCE_S = 656  # 8191 frames of 80 ms, spoken no slower than real time
SUPERVISOR_PORT = 8003
PORT_VARIABLES = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "PORT")
OPTIONS = {  # of the command line; each is a field of LaunchConfig
    "model_repository": "the models to serve",
    "server_dir": "where the server of the nvidia-pytriton wheel is laid out",
    "log_path": "tritonserver's log; /dev/stdout in a container",
    "ready_timeout_s": "how long the start may take",
    "exit_timeout_s": "how long streams in flight may hold the drain",
    "idle_grace_s": "how long open connections may hold the drain when nothing is being spoken",
}


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


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    end = list(argv).index("--") if "--" in argv else len(argv)
    extra_args = tuple(argv[end + 1 :])
    return _parser(LaunchConfig()).parse_args(argv[:end], argparse.Namespace(extra_args=extra_args))


def _parser(defaults: LaunchConfig) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m qwen3_tts_engine.launch.launcher",
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
        with suppress(OSError), bound_socket(environment.get("TRITON_HOST", "127.0.0.1"), SUPERVISOR_PORT):
            return SUPERVISOR_PORT
    return free_ports(1)[0]


def _switch(environment: Mapping[str, str], name: str, default: bool) -> bool:
    value = environment.get(name, str(default)).lower()
    if value not in SWITCHES:
        raise LaunchError(f"{name}={value}: neither true nor false")
    return SWITCHES[value]
