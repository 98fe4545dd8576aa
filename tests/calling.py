"""Callers who ask again and again while something is done to the service, and what became of every one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from callers import RESTLESS
from qwen3_tts_client import SpeechClient, SpeechError
from real_server import wait_until

logger = logging.getLogger(__name__)
TEXT = "Is anybody there?"
NUM_FRAMES = 50  # 4 s of audio
SEED = 1  # with which the tiny voice goes on for longer than anybody here listens
NUM_BYTES = NUM_FRAMES * 1920 * 2
PAUSE_S = 0.1  # after an error, before the next try
PATIENCE_S = 90

CUT_SHORT = "cut short"  # how the one thing begins that nobody may ever hear

Speak = Callable[[], str]  # -> "" for all of the audio, else the error in words


@dataclass(frozen=True)
class Call:
    """One request and its end; `error` is empty where all of the audio came."""

    caller: int
    began_s: float
    ended_s: float
    error: str


class Callers:
    """What happened so far; times are of `time.monotonic`."""

    def __init__(self, num_callers: int) -> None:
        self.calls: list[Call] = []
        self._num_callers = num_callers
        self._leaving = threading.Event()

    def longest_wait_s(self, since_s: float) -> float:
        """For audio or an error, by whoever waited then or came later; waiting before that is no matter."""
        return max(
            call.ended_s - max(call.began_s, since_s) for call in self.calls if call.ended_s >= since_s
        )

    def errors(self) -> list[str]:
        return [call.error for call in self.calls if call.error]

    def errors_of(self, *callers: int) -> list[str]:
        return [call.error for call in self.calls if call.error and call.caller in callers]

    def all_served_since(self, since_s: float) -> bool:
        """Whether each of them has come and been served since."""
        served = {call.caller for call in self.calls if call.began_s >= since_s and not call.error}
        return len(served) == self._num_callers

    def keep_calling(self, caller: int, speak: Speak) -> None:
        while not self._leaving.is_set():
            began_s = time.monotonic()
            error = speak()
            self.calls.append(Call(caller, began_s, time.monotonic(), error))
            if error:
                self._leaving.wait(PAUSE_S)

    def leave(self) -> None:
        self._leaving.set()


@contextmanager
def calling(*speaks: Speak) -> Iterator[Callers]:
    """Callers who have all been served once; after the block each has heard the end of the last request.

    What they break may cost them audio, and they are told; audio that just ends early is never right.
    """
    callers = Callers(len(speaks))
    threads = [
        threading.Thread(target=callers.keep_calling, args=(i, speak), daemon=True)
        for i, speak in enumerate(speaks)
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: callers.all_served_since(0), "every caller is served", timeout_s=PATIENCE_S)
        yield callers
    finally:
        callers.leave()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "somebody hangs"
    assert not [error for error in callers.errors() if error.startswith(CUT_SHORT)], callers.errors()


@contextmanager
def breaking(*speaks: Speak, wait_s: float, back_s: float) -> Iterator[Callers]:
    """The block breaks something under load; after it everybody is served again, and nobody waited too long.

    Args:
        wait_s: for audio or an error.
        back_s: from the block's end until each of the callers has been served.
    """
    with calling(*speaks) as callers:
        began_s = time.monotonic()
        yield callers
        broken_s = time.monotonic()
        wait_until(lambda: callers.all_served_since(broken_s), "all are served again", timeout_s=back_s)
        ended_s = time.monotonic()
    waited_s, errors = callers.longest_wait_s(began_s), {*callers.errors()}
    logger.info("waited %.1f s, back after %.1f s, %s", waited_s, ended_s - began_s, errors)
    assert waited_s < wait_s


def through_triton(grpc_port: int, num_frames: int = NUM_FRAMES) -> Speak:
    """A caller with the client library, straight to Triton."""

    def speak() -> str:
        try:
            with SpeechClient(f"127.0.0.1:{grpc_port}") as tts:
                audio = tts.synthesize(TEXT, voice="ryan", max_frames=num_frames, seed=SEED, **RESTLESS)
        except SpeechError as error:
            return repr(error)
        return "" if audio.num_frames == num_frames else f"{CUT_SHORT} at {audio.num_frames} frames"

    return speak


def through_gateway(url: str, key: str = "") -> Speak:
    """A caller of OpenAI's route, whose audio is a stream of PCM."""
    asked = {
        "input": TEXT,
        "voice": "ryan",
        "response_format": "pcm",
        "max_new_tokens": NUM_FRAMES + 1,
        "seed": SEED,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def speak() -> str:
        try:
            answer = httpx.post(
                f"{url}/v1/audio/speech", json=asked | RESTLESS, headers=headers, timeout=PATIENCE_S
            )
        except httpx.TransportError as error:
            return repr(error)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        return "" if len(answer.content) == NUM_BYTES else f"{CUT_SHORT} at {len(answer.content)} bytes"

    return speak
