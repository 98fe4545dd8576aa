"""The real tritonserver with some models of the repository, and a gateway, for a benchmark of its own."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil

from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.server import Server, running_server
from qwen3_tts_engine.launch.system import running_gateway
from report import ROOT


@contextmanager
def serving(models: Sequence[str], environment: Mapping[str, str], log: str) -> Iterator[Server]:
    """A server on free ports that has loaded these models and no others; it ends with the block.

    Args:
        models: names in the repository; of an ensemble, name the parts as well.
        environment: over this process's own, such as which checkpoints to serve.
        log: the name of the server's log among `.server/logs/`.
    """
    http_port, grpc_port, metrics_port = free_ports()
    config = LaunchConfig(
        model_repository=ROOT / "model_repository",
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        preload_models=False,
        extra_args=tuple(f"--load-model={model}" for model in models),
        idle_grace_s=2,
        server_dir=ROOT / ".server",
        log_path=ROOT / ".server/logs" / log,
        environment={**os.environ, **environment},
    )
    with running_server(config) as server:
        yield server


@dataclass(frozen=True)
class Gateway:
    url: str
    pid: int


@contextmanager
def gateway_of(server: Server) -> Iterator[Gateway]:
    """A gateway of its own in front of a server, on a free port."""
    (port,) = free_ports(1)
    environment = {**server.config.environment, "HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "ERROR"}
    config = replace(server.config, environment=environment)
    with running_gateway(config, Repairs()) as gateway:
        yield Gateway(f"http://127.0.0.1:{port}", gateway.process.pid)


def processes_of(server: Server, gateway_pid: int) -> dict[str, psutil.Process]:
    """Triton, its model processes by their models, and the gateway."""
    triton = psutil.Process(server.process.pid)
    found = {"tritonserver": triton, "gateway": psutil.Process(gateway_pid)}
    for stub in triton.children(recursive=True):
        for part in stub.cmdline():
            if part.endswith("/1/model.py"):
                found[part.split("/")[-3]] = stub
    return found


def counted(server: Server, series: str, model: str = "qwen3_tts_custom_voice") -> float:
    """What a model's series on the server's metrics page stands at, such as `qwen3_tts_step_seconds_sum`."""
    return counted_on(metrics_page(server), series, model)


def metrics_page(server: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=20) as page:
        return str(page.read().decode())


def counted_on(page: str, series: str, model: str) -> float:
    lines = re.findall(rf"^{series}\{{(.*)\}} (\S+)$", page, flags=re.MULTILINE)
    return sum(float(value) for labels, value in lines if f'model="{model}"' in labels)
