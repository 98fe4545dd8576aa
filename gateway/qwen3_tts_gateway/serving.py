"""The gateway as a process, until SIGTERM or Ctrl-C; utterances under way are spoken to their end."""

from __future__ import annotations

import logging
import signal
import socket
from contextlib import suppress

from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.disconnects import SEND_TIMEOUT_S
from qwen3_tts_gateway.observing import log_as_json
from qwen3_tts_gateway.settings import Settings, SettingsError
from qwen3_tts_gateway.shutdown import Server

log = logging.getLogger(__name__)

DRAIN_S = 660
"""The longest utterance, 8191 frames of 80 ms spoken no slower than real time, and a little more."""
BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than balancers keep a connection that nobody uses: whoever closes first may swallow a request."""


def serve(settings: Settings | None = None) -> None:
    """Serve until told to stop.

    Raises:
        ValidationError, SettingsError, KeyFileError: this is no way to serve; the message names the variable.
    """
    settings = settings or Settings()
    log_as_json(settings.log_level)
    try:
        app = create_app(settings)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    server = Server(
        app,
        app.state.gateway.shutdown,
        settings.shutdown_notice_s,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        server_header=False,
    )
    with listener(settings.host, settings.port) as listening:
        log.info("listening", extra={"host": settings.host, "port": settings.port})
        # uvicorn, having drained, hands on the signal that it caught: both are to end this in the same way.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        log.info("stopped")


def listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"PORT={port}: cannot listen on {host}: {error.strerror}; set PORT to a free port"
        ) from error
    # asyncio does so only for sockets of its own. Otherwise the first audio waits until the caller has
    # acknowledged the headers, which many do 40 ms later. Connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    # Who takes nothing any more is let go by the kernel, too, with what waits to be sent to them.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_TIMEOUT_S * 1000)
    return listening
