"""The decoders' C code runs in a process of its own, so that a file which crashes it, hangs it or fills its
memory costs its sender an error, and everybody else a second. One death may be anybody's doing, so a file is
blamed for the second only.

The process (`__main__.py` is all it runs) is started once and kept. Before it sees the first file it has
given up new files and sockets, core dumps, and memory beyond what the longest recording needs; of the
environment it has only what an interpreter needs to start. A time limit on both sides ends it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.errors import EngineFailed, InvalidRequest
from qwen3_tts_engine.reference_audio.kinds import Kind, unwrap
from qwen3_tts_engine.reference_audio.limits import MAX_RATE, SAMPLE_RATE, Limits

logger = logging.getLogger(__name__)

MEMORY_BYTES = 128 << 20  # on top of what the samples take
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 5
ALARM_MARGIN_S = (
    2  # the owner is first to notice a hang; the process notices it when there is no owner any more
)

# The only variables the process inherits: no keys, no tokens.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL")

PCM, INVALID, FAILED = b"P", b"I", b"F"  # how an answer begins
READY = b"R"
DURATION = struct.Struct("<d")


@dataclass(frozen=True)
class Recording:
    """Mono float32 samples at 24 kHz, and how long the file's own samples last."""

    pcm: NDArray[np.float32]
    duration_s: float


class Decoder:
    """Decodes one file after the other. Not for several threads at once.

    Raises:
        EngineFailed: when the process cannot be started.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, given: bytes) -> Recording:
        """A WAV, FLAC, MP3, Ogg/Vorbis, Opus or M4A/AAC file, or base64 or a data: URL of one.

        Raises:
            InvalidRequest: naming what is wrong with it and what is allowed.
            EngineFailed: when it is our fault; the next call starts anew.
        """
        kind, file = unwrap(given, self._limits.max_bytes)
        answer = self._ask(kind, file) or self._ask(kind, file)
        if answer is None:
            raise InvalidRequest(f"ref_audio is {kind} that breaks the decoder; it must be a sound one")
        status, content = answer[:1], answer[1:]
        if status == PCM:
            (duration_s,) = DURATION.unpack_from(content)
            return Recording(np.frombuffer(content, np.float32, offset=DURATION.size), duration_s)
        if status == INVALID:
            raise InvalidRequest(content.decode())
        raise EngineFailed(f"ref_audio could not be decoded: {content.decode()}")

    def close(self) -> None:
        """The process ends when nobody is left to ask it."""
        self._connection.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, kind: Kind, file: bytes) -> bytes | None:
        """None when the process is dead; whoever killed it, there is a new one now."""
        try:
            self._connection.send_bytes(kind.value.encode())
            self._connection.send_bytes(file)
            if self._connection.poll(self._limits.timeout_seconds):
                return self._connection.recv_bytes()
        except (EOFError, OSError):
            self._restart()
            return None
        self._restart()
        raise InvalidRequest(
            f"ref_audio is {kind} that takes more than {self._limits.timeout_seconds:g} s to decode;"
            " it must be a sound one"
        )

    def _restart(self) -> None:
        self._process.kill()
        self.close()
        if self._process.returncode != -signal.SIGKILL:
            logger.warning("the decoding process died with status %d", self._process.returncode)
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(_interpreter(), "-m", "qwen3_tts_engine.reference_audio"),
                    *(str(theirs.fileno()), json.dumps(asdict(self._limits))),
                ],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())
        try:
            is_ready = self._connection.poll(START_TIMEOUT_S) and self._connection.recv_bytes() == READY
        except (EOFError, OSError):
            is_ready = False
        if not is_ready:
            self._process.kill()
            self.close()
            raise EngineFailed(f"the decoding process ({_interpreter()}) did not start; its errors are above")


def serve(connection: Connection, limits: Limits) -> None:
    """What the process does until its owner closes the connection."""
    from qwen3_tts_engine.reference_audio.decoding import decode, rehearse

    rehearse()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
    os.dup2(1, 2)  # which is /dev/null: what the libraries say about hostile files would fill Triton's log
    _give_up_resources(limits)
    connection.send_bytes(READY)
    with suppress(EOFError, OSError):
        while True:
            kind, file = Kind(connection.recv_bytes().decode()), connection.recv_bytes()
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_seconds + ALARM_MARGIN_S)
            try:
                pcm, duration_s = decode(kind, file, limits)
                answer = PCM + DURATION.pack(duration_s) + pcm.tobytes()
            except InvalidRequest as error:
                answer = INVALID + str(error).encode()
            except MemoryError:
                answer = INVALID + b"ref_audio takes more memory to decode than any sound file needs"
            except Exception as error:
                answer = FAILED + repr(error).encode()
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(answer)


def _give_up_resources(limits: Limits) -> None:
    """For good: hard limits cannot be raised again."""
    files = 3 * limits.max_bytes
    samples = int(limits.max_seconds * 4 * (4 * MAX_RATE + 3 * SAMPLE_RATE))
    in_use = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()  # noqa: SIM115, PTH123
    memory = in_use + MEMORY_BYTES + files + samples
    for what, limit in {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_NOFILE: 0,  # what is open stays open
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }.items():
        resource.setrlimit(what, (limit, limit))


def _interpreter() -> str:
    """Inside Triton's stub, `sys.executable` is the first python3 on PATH, or nothing."""
    return sys.executable or "python3"


def _environment() -> dict[str, str]:
    """The same packages as here, one thread, and no secrets."""
    inherited = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = os.pathsep.join(filter(None, sys.path))
    return inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
