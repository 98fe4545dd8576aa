"""The whole system: Triton, and the gateway in front of it as a process of its own.

python -m qwen3_tts_engine.system [options of qwen3_tts_engine.launcher]
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from qwen3_tts_engine.launcher import (
    Address,
    LaunchConfig,
    LaunchError,
    StopRequest,
    check_addresses,
    main,
    port_from,
    reachable,
    running_server,
    say,
    wait_for_the_end,
)

GATEWAY = (sys.executable, "-m", "qwen3_tts_gateway.cli", "serve")
READY_TIMEOUT_S = 60.0


def serve(config: LaunchConfig) -> int:
    """Run both until SIGINT, SIGTERM or SIGHUP, or until one of them ends; the gateway is drained first."""
    address = gateway_address(config)
    check_addresses(config.addresses | {"PORT": address})
    with running_server(config) as server, running_gateway(config) as gateway:
        stop = StopRequest()
        say(f"ready: http://{reachable(address[0])}:{address[1]}/docs, Triton's gRPC on {server.grpc_port}")
        wait_for_the_end(stop, server.process, gateway)
        if not stop.made:
            if server.process.poll() is not None:
                raise server.failure(f"tritonserver ended by itself with status {server.process.returncode}")
            raise LaunchError(f"the gateway ended by itself with status {gateway.returncode}")
        say("draining: streams in flight are finished, new requests refused; a second signal stops at once")
    if not server.drained:
        raise server.failure("the drain did not end well")
    return 0


def gateway_address(config: LaunchConfig) -> Address:
    return config.environment.get("HOST", "127.0.0.1"), port_from(config.environment, "PORT", 8080)


@contextmanager
def running_gateway(config: LaunchConfig) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway that answers inside the block and has finished its streams after it."""
    # A session of its own: Ctrl-C reaches this process alone, which drains in order.
    process = subprocess.Popen(GATEWAY, env=_environment(config), start_new_session=True)
    try:
        _wait_until_ready(process, gateway_address(config))
        yield process
        process.terminate()
        process.wait()
    finally:
        process.kill()
        process.wait()


def _environment(config: LaunchConfig) -> dict[str, str]:
    ports = {name: str(port) for name, port in config.ports.items()}
    return {**config.environment, "TRITON_HOST": config.client_host, **ports}


def _wait_until_ready(process: subprocess.Popen[bytes], address: Address) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _answers(address):
        if process.poll() is not None:
            raise LaunchError(f"the gateway could not start; it ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise LaunchError(f"the gateway was not ready within {READY_TIMEOUT_S:g} s")
        time.sleep(0.05)


def _answers(address: Address) -> bool:
    connection = http.client.HTTPConnection(reachable(address[0]), address[1], timeout=2)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


if __name__ == "__main__":
    sys.exit(main(serve=serve))
