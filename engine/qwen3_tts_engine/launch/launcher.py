"""Starts the real tritonserver on the model repository, watches it, drains it and leaves nothing behind.

    python -m qwen3_tts_engine.launch.launcher [--model-repository model_repository] [-- tritonserver flags]

Addresses, ports and preloading come from the environment and from `.env` (see `.env.example`).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen3_tts_engine.launch.config import LaunchConfig, config_from, environment_with, parsed
from qwen3_tts_engine.launch.ports import check_addresses
from qwen3_tts_engine.launch.repairs import Repairs, page_of
from qwen3_tts_engine.launch.saying import say
from qwen3_tts_engine.launch.server import running_server
from qwen3_tts_engine.launch.tritonserver import LaunchError
from qwen3_tts_engine.launch.watching import Pulse, StopRequest, handle_stop_signals, watch_until


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


def main(argv: Sequence[str] | None = None, serve: Callable[[LaunchConfig], int] = serve) -> int:
    handle_stop_signals(signal.default_int_handler)  # until there is a server to drain, each ends the start
    try:
        arguments = parsed(sys.argv[1:] if argv is None else argv)
        return serve(config_from(environment_with(Path(".env")), arguments))
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:  # during the start, or a second time
        return 130


if __name__ == "__main__":
    sys.exit(main())
