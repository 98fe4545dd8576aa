"""A gateway for a test: the real application behind a real socket, in a thread of this process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.settings import Settings
from real_server import wait_until


@dataclass
class GatewayServer:
    """A gateway that listens.

    Attributes:
        url: `http://127.0.0.1:<port>`.
        app: what answers there.
        loop: where it runs; everything of the gateway's own is to be touched from there only.
    """

    url: str
    app: FastAPI
    loop: asyncio.AbstractEventLoop

    @property
    def gateway(self) -> Gateway:
        return self.app.state.gateway  # type: ignore[no-any-return]

    def num_tasks(self) -> int:
        """Tasks alive in the gateway's loop."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)


class GatewayProcess:
    """`qwen3-tts-gateway serve` as an operator runs it: what it says, how it ends.

    Args:
        directory: its working directory, for its log.
        environment: all that it sees of one, besides what every process needs.
    """

    def __init__(self, directory: Path, **environment: str) -> None:
        [self.port] = free_ports(1)
        self._log = directory / "gateway.log"
        self._directory = directory
        self._environment = {"PATH": os.environ["PATH"], "PORT": str(self.port), **environment}

    def __enter__(self) -> GatewayProcess:
        self.start()
        return self

    def start(self) -> None:
        """Also anew, on the same port, when it has ended."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qwen3_tts_gateway.cli", "serve"],
                cwd=self._directory,
                env=self._environment,
                stderr=log,
            )

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.process.poll() is not None or self.answers(), "the gateway is ready")
        assert self.process.poll() is None, self.said()

    def is_ready(self) -> bool:
        """As a balancer asks: over a connection of its own."""
        return httpx.get(f"{self.url}/health/ready").status_code == 200

    def answers(self) -> bool:
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", self.port))):
            return True
        return False

    def said(self) -> str:
        return self._log.read_text()


def settings(**fields: Any) -> Settings:
    """Settings that nothing outside the test has a say in."""
    return Settings(_env_file=None, **fields)


class PromptServer(uvicorn.Server):
    """Ends when it is `told`; uvicorn's own looks ten times a second whether it was."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.told = asyncio.Event()
        self.has_started = threading.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.has_started.set()
        await self.told.wait()


@contextmanager
def running_gateway(settings: Settings, *, send_buffer_bytes: int | None = None) -> Iterator[GatewayServer]:
    """The gateway on a free port, stopped after the block; streams under way are not waited for.

    Args:
        send_buffer_bytes: of its sockets; by default the kernel's own, which swallows whole utterances.
    """
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio does so where uvicorn opens the socket; without it, every answer waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    if send_buffer_bytes is not None:  # what is accepted inherits it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=0)
    server = PromptServer(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        try:
            await server.serve(sockets=[listener])
        finally:
            server.has_started.set()  # or never will

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="gateway")
    thread.start()
    try:
        assert server.has_started.wait(20), "waited in vain for the gateway to start"
        yield GatewayServer(f"http://127.0.0.1:{listener.getsockname()[1]}", app, loops[0])
    finally:
        if thread.is_alive():
            loops[0].call_soon_threadsafe(server.told.set)
        thread.join(timeout=20)
        listener.close()
        assert not thread.is_alive()
