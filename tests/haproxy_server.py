"""A real haproxy with the configuration that is shipped, on addresses of a test's own."""

from __future__ import annotations

import csv
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qwen3_tts_engine.launch.ports import free_ports
from real_server import ROOT, wait_until

CONFIGURATION = ROOT / "docker" / "haproxy" / "haproxy.cfg"


def haproxy_binary() -> str:
    binary = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None and not os.environ.get("CI"):
        pytest.skip("there is no haproxy on this machine: apt-get install haproxy")
    assert binary, "haproxy is missing"
    return binary


class Balancer:
    """HAProxy between callers and servers.

    Args:
        directory: for its socket and its log.
    """

    def __init__(self, directory: Path) -> None:
        self._binary = haproxy_binary()
        self._log = directory / "haproxy.log"
        self._socket = directory / "haproxy.sock"
        self.grpc_port, self.http_port = free_ports(2)

    @contextmanager
    def running(self, addresses: Mapping[str, str]) -> Iterator[None]:
        """In front of servers, whose addresses go by the configuration's variables, such as `TRITON_A`."""
        environment = {
            **addresses,
            "HAPROXY_SOCKET": str(self._socket),
            "GRPC_ADDRESS": f"127.0.0.1:{self.grpc_port}",
            "HTTP_ADDRESS": f"127.0.0.1:{self.http_port}",
        }
        command = [self._binary, "-db", "-f", str(CONFIGURATION)]
        with self._log.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: self._socket.exists() or process.poll() is not None, "haproxy starts")
            assert process.poll() is None, self._log.read_text()
            yield
        finally:
            process.kill()
            process.wait()

    def order(self, command: str) -> str:
        """What it answers to a command at its own socket, the one that operators use."""
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(10)
            connection.connect(str(self._socket))
            connection.sendall(command.encode() + b"\n")
            with connection.makefile() as answer:
                return answer.read()

    def take_out(self, server: str) -> None:
        """Nothing new is sent to `triton/a`; what it has begun goes on."""
        assert self.order(f"set server {server} state drain").strip() == ""

    def put_back(self, server: str) -> None:
        assert self.order(f"set server {server} state ready").strip() == ""

    def streams(self, server: str) -> int:
        """Requests that a server has been given and not answered to the end."""
        return int(self._row(server)["scur"])

    def wait_until_up(self, server: str) -> None:
        wait_until(lambda: self._row(server)["status"] == "UP", f"haproxy finds {server} up")

    def _row(self, server: str) -> dict[str, str]:
        backend, name = server.split("/")
        rows = csv.DictReader(self.order("show stat").removeprefix("# ").splitlines())
        return next(row for row in rows if (row["pxname"], row["svname"]) == (backend, name))
