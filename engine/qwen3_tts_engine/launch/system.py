"""The whole system: Triton, and the gateway in front of it as a process of its own.

python -m qwen3_tts_engine.launch.system [options of qwen3_tts_engine.launch.launcher]
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from qwen3_tts_engine.launch.access import VARIABLE as KEY_VARIABLE
from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.judging import BackOff
from qwen3_tts_engine.launch.launcher import main, showing_repairs
from qwen3_tts_engine.launch.ports import Address, check_addresses, port_from, reachable
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.saying import say
from qwen3_tts_engine.launch.server import running_server
from qwen3_tts_engine.launch.tritonserver import LaunchError
from qwen3_tts_engine.launch.watching import Pulse, StopRequest, watch_until

GATEWAY = (sys.executable, "-m", "qwen3_tts_gateway.cli", "serve")
READY_TIMEOUT_S = 60.0


def serve(config: LaunchConfig) -> int:
    """Keep both running until SIGINT, SIGTERM or SIGHUP; the gateway is drained first."""
    address = gateway_address(config)
    check_addresses(
        config.addresses | {"PORT": address, "SUPERVISOR_PORT": (config.host, config.supervisor_port)}
    )
    _check_trust(config)
    pulse = Pulse()
    with (
        showing_repairs(config, pulse) as repairs,
        running_server(config) as server,
        running_gateway(config, repairs) as gateway,
    ):
        stop = StopRequest()
        say(f"ready: http://{reachable(address[0])}:{address[1]}/docs, Triton's gRPC on {server.grpc_port}")
        watch_until(stop, pulse, gateway, server.supervisor(repairs))
        say("draining: streams in flight are finished, new requests refused; a second signal stops at once")
    if not server.drained:
        raise server.failure("the drain did not end well")
    return 0


def _check_trust(config: LaunchConfig) -> None:
    """A gateway that knows no authority of Triton's certificate would not even try TLS."""
    if config.access.certificate and not config.environment.get("TRITON_CA_FILE"):
        raise LaunchError(
            "TRITON_CERT_FILE is set and TRITON_CA_FILE is not; the gateway needs the authority to trust"
        )


def gateway_address(config: LaunchConfig) -> Address:
    return config.environment.get("HOST", "127.0.0.1"), port_from(config.environment, "PORT", 8080)


class GatewayProcess:
    """The gateway, started anew when it ends by itself."""

    def __init__(
        self, config: LaunchConfig, repairs: Repairs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._repairs = repairs
        self._address = gateway_address(config)
        self._environment = _environment(config)
        self._clock = clock
        self._back_off = BackOff()
        self._restart_s: float | None = None
        self.process = self._start()

    def look(self) -> None:
        """See that it runs, and once it has been started again, that it answers."""
        if self.process.poll() is not None:
            self._bring_back()
        elif "gateway" in self._repairs.under_way() and _answers(self._address):
            self._repairs.end("gateway")
            say("the gateway serves again")

    def _bring_back(self) -> None:
        """Start it again when its pause is over; a key file or a port may be mended meanwhile."""
        if self._restart_s is None:
            self._repairs.begin("gateway", "died")
            pause_s = self._back_off.pause_s(self._clock())
            self._restart_s = self._clock() + pause_s
            say(
                f"the gateway ended by itself with status {self.process.returncode}; starting it again"
                + (f" in {pause_s:g} s" if pause_s else "")
            )
        if self._clock() >= self._restart_s:
            self._restart_s = None
            self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches this process alone, which drains in order.
        return subprocess.Popen(GATEWAY, env=self._environment, start_new_session=True)


@contextmanager
def running_gateway(config: LaunchConfig, repairs: Repairs) -> Iterator[GatewayProcess]:
    """A gateway that answers inside the block and has finished its streams after it."""
    gateway = GatewayProcess(config, repairs)
    try:
        _wait_until_ready(gateway.process, gateway_address(config))
        yield gateway
        gateway.process.terminate()
        gateway.process.wait()
    finally:
        gateway.process.kill()
        gateway.process.wait()


def _environment(config: LaunchConfig) -> dict[str, str]:
    """It reads `.env` again, below these: what both must agree on is handed on as it was understood here."""
    host, port = gateway_address(config)
    hosts = {"HOST": host, "TRITON_HOST": config.client_host}
    ports = {name: str(port) for name, port in (config.ports | {"PORT": port}).items()}
    key = {KEY_VARIABLE: config.access.api_key}
    return {**config.environment, **hosts, **ports, **key}


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
