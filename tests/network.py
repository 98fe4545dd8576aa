"""A network between two programs of a test that can be cut, stopped and slowed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PIECE_BYTES = 65536


class Network:
    """Carries TCP connections to one port.

    Attributes:
        port: where it listens.
        delay_s: how much later each piece arrives.
    """

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self._target = ("127.0.0.1", target_port)
        self._flows = threading.Event()
        self._flows.set()
        self._is_cut = False
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def cut(self) -> None:
        """End every connection and take no other."""
        self._is_cut = True
        self._end_all()

    def stop(self) -> None:
        """Carry nothing more, and tell nobody: a cable that is pulled."""
        self._flows.clear()

    def mend(self) -> None:
        """As it was in the beginning; what was stopped goes on."""
        self.delay_s = 0.0
        self._is_cut = False
        self._flows.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()  # nobody comes any more
        self._flows.set()
        self._end_all()
        for thread in self._threads:
            thread.join()
        for end in (*self._ends, self._listener):
            end.close()

    def _start(self, act: Callable[..., None], *ends: socket.socket) -> None:
        self._threads.append(threading.Thread(target=act, args=ends, daemon=True))
        self._threads[-1].start()

    def _end_all(self) -> None:
        for end in self._ends:
            _end(end)

    def _accept(self) -> None:
        with suppress(OSError):  # until the listener is shut down
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                if self._is_cut:
                    _end(near)
                else:
                    self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except ConnectionRefusedError:
            _end(near)
            return
        self._ends.append(far)
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._start(self._carry, near, far)
        self._start(self._carry, far, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                time.sleep(self.delay_s)
                self._flows.wait()
                sink.sendall(piece)
        _end(source)
        _end(sink)


def _end(end: socket.socket) -> None:
    with suppress(OSError):  # it has ended
        end.shutdown(socket.SHUT_RDWR)


@contextmanager
def network_to(port: int) -> Iterator[Network]:
    network = Network(port)
    try:
        yield network
    finally:
        network.close()
