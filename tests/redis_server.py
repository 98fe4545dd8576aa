"""A real redis-server of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

PATIENCE_S = 10


@contextmanager
def running_redis(directory: Path, port: int, *flags: str) -> Iterator[str]:
    """Its URL, once it answers; it keeps nothing on disk but its log.

    Args:
        directory: for that log.
        flags: further ones of redis-server.
    """
    binary = shutil.which("redis-server")
    if binary is None and not os.environ.get("CI"):
        pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
    assert binary, "redis-server is missing"
    own = f"--port {port} --bind 127.0.0.1 --dir {directory} --appendonly no".split()
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([binary, *own, "--save", "", *flags], stdout=log, stderr=log)
    try:
        wait_for_redis(url := f"redis://127.0.0.1:{port}/0")
        yield url
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def kill_redis(url: str) -> None:
    """At once, whatever it was at."""
    with redis.Redis.from_url(url) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)


def wait_for_redis(url: str) -> None:
    """Until it answers a ping, to which even one with passwords needs none."""
    deadline = time.monotonic() + PATIENCE_S
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server does not come up"
                time.sleep(0.02)
