"""Two Tritons and two gateways behind HAProxy, with a Redis for voices and limits, all real, on loopback."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from gateway_server import GatewayProcess
from haproxy_server import Balancer
from metrics_page import ACTIVE, QUEUED, WAITING, read_metrics
from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_gateway.key_file import KeyFile, KeyTerms
from real_server import ROOT, clean_server, on_free_ports, wait_until
from redis_server import running_redis

if TYPE_CHECKING:
    from typing_extensions import Self

MODELS = ("qwen3_tts_custom_voice", "qwen3_tts_base", "voices")
REQUESTS_PER_MINUTE = 3  # of the limited key
NOTICE_S = 3  # for the balancer to see that a gateway leaves; it takes less than 2
PATIENCE_S = 60


class Replica:
    """A Triton that is started and stopped on the same ports, again and again."""

    def __init__(self, name: str, directory: Path, voice_store: str) -> None:
        self.server_name = f"triton/{name}"  # to the balancer
        self.config = on_free_ports(
            {"VOICE_STORE": voice_store},
            model_repository=ROOT / "model_repository",
            preload_models=False,
            extra_args=tuple(f"--load-model={model}" for model in MODELS),
            log_path=directory / f"{name}.log",
            exit_timeout_s=LaunchConfig().exit_timeout_s,  # a busy machine speaks slowly
        )
        self._running = ExitStack()
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        assert self._server is not None, "it does not run"
        return self._server

    @property
    def is_running(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        self._server = self._running.enter_context(clean_server(self.config))

    def stop(self) -> None:
        """As the launcher does on SIGTERM: what it has begun is spoken to its end."""
        self._running.close()
        self._server = None

    def kill(self) -> None:
        """As when its machine dies: every process at once, and nobody is told."""
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.process.wait()
        self.stop()

    def num_speaking(self) -> int:
        return int(read_metrics(self.server)[ACTIVE])

    def num_inside(self) -> int:
        """Utterances that have reached it and are not finished, over the models that speak."""
        pages = [read_metrics(self.server, model) for model in MODELS[:2]]
        return int(sum(page.get(gauge, 0) for page in pages for gauge in (ACTIVE, WAITING, QUEUED)))


class Cluster:
    """What callers reach by two ports, and what is behind them."""

    def __init__(self, directory: Path) -> None:
        self._stack = ExitStack()
        [redis_port] = free_ports(1)
        self.redis_url = self._stack.enter_context(running_redis(directory, redis_port))
        self.balancer = Balancer(directory)
        self.replicas = [Replica(name, directory, self.redis_url) for name in "ab"]
        self._keys = directory / "keys.json"
        self.unlimited = self._issue_key("unlimited")
        self.limited = self._issue_key("limited", requests_per_minute=REQUESTS_PER_MINUTE)
        self.gateways = [self._gateway(directory / f"gateway-{name}") for name in "ab"]

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Replica.start, self.replicas))
        self._stack.enter_context(self.balancer.running(self._addresses()))
        for gateway in self.gateways:
            self._stack.enter_context(gateway).wait_until_ready()
        self.recover()

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            if replica.is_running:
                replica.stop()
        self._stack.close()

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.balancer.grpc_port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.balancer.http_port}"

    def client(self) -> SpeechClient:
        """Of the balancer, over one connection."""
        return SpeechClient(self.grpc_address, timeout_s=PATIENCE_S)

    def recover(self) -> None:
        """Everything runs, and the balancer knows it."""
        for replica in self.replicas:
            if not replica.is_running:
                replica.start()
            self.balancer.put_back(replica.server_name)
        for server in ("triton/a", "triton/b", "gateways/a", "gateways/b"):
            self.balancer.wait_until_up(server)

    def restart(self, replica: Replica, num_direct: int = 0) -> None:
        """The recipe of docs/scaling.md: out of the balancer, settle, drain, start, back.

        Args:
            num_direct: streams that are inside and did not come through the balancer.
        """
        self.balancer.take_out(replica.server_name)
        settled = f"what was on its way to {replica.server_name} is there"
        wait_until(
            lambda: self.balancer.streams(replica.server_name) <= replica.num_inside() - num_direct, settled
        )
        replica.stop()
        replica.start()
        self.balancer.put_back(replica.server_name)
        self.balancer.wait_until_up(replica.server_name)

    def restart_gateway(self, gateway: GatewayProcess) -> None:
        """SIGTERM is all it takes: the balancer learns of it from the gateway."""
        gateway.process.terminate()
        assert gateway.process.wait(PATIENCE_S) == 0, gateway.said()
        gateway.start()
        gateway.wait_until_ready()
        self.balancer.wait_until_up(self.name_of(gateway))

    def name_of(self, gateway: GatewayProcess) -> str:
        """To the balancer."""
        return f"gateways/{'ab'[self.gateways.index(gateway)]}"

    def _addresses(self) -> dict[str, str]:
        addresses = {}
        for name, replica, gateway in zip("AB", self.replicas, self.gateways, strict=True):
            addresses[f"TRITON_{name}"] = f"127.0.0.1:{replica.config.grpc_port}"
            addresses[f"TRITON_{name}_HTTP_PORT"] = str(replica.config.http_port)
            addresses[f"GATEWAY_{name}"] = f"127.0.0.1:{gateway.port}"
        return addresses

    def _issue_key(self, name: str, **limits: int) -> dict[str, str]:
        """The header of who has the key."""
        terms = KeyTerms(name=name, scopes=("synth",), **limits)
        return {"X-API-Key": KeyFile(self._keys).create(terms, datetime.now(timezone.utc))}

    def _gateway(self, directory: Path) -> GatewayProcess:
        directory.mkdir()
        return GatewayProcess(
            directory,
            TRITON_GRPC_PORT=str(self.balancer.grpc_port),
            API_KEYS_FILE=str(self._keys),
            LIMITS_STORE=self.redis_url,
            SHUTDOWN_NOTICE_S=str(NOTICE_S),
        )
