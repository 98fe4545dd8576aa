"""Addresses: which are free, and how one reaches them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import combinations
from typing import TypeAlias

from qwen3_tts_engine.launch.tritonserver import LaunchError

Address: TypeAlias = tuple[str, int]
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def reachable(host: str) -> str:
    """Where a service that listens on this address is reached from the same machine."""
    return ANY_ADDRESS.get(host, host)


def check_addresses(addresses: Mapping[str, Address]) -> None:
    """Refuse a port that is given twice or in use, by the name of its variable."""
    for (name, (_, port)), (other_name, (_, other_port)) in combinations(addresses.items(), 2):
        if port == other_port:
            raise LaunchError(f"{name} and {other_name} are both {port}; each needs a port of its own")
    for name, (host, port) in addresses.items():
        _check_port(name, host, port)


def _check_port(name: str, host: str, port: int) -> None:
    try:
        with bound_socket(host, port):
            pass
    except OSError as error:
        raise LaunchError(
            f"{name}={port}: cannot listen on {host}: {error.strerror}; set {name} to a free port"
        ) from error


def free_ports(count: int = 3) -> tuple[int, ...]:
    """Ports nobody listens on now, all different."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(bound_socket("127.0.0.1", 0)) for _ in range(count)]
        return tuple(listener.getsockname()[1] for listener in listeners)


def bound_socket(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # Connections of an earlier server that are still closing do not make a port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def port_from(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise LaunchError(f"{name}={value}: not a port number, 1 to 65535")
    return int(value)
