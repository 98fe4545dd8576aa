"""Finding saved voices in a store that may say nothing for long, without holding up whoever comes after."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from qwen3_tts_engine.errors import EngineFailed
from qwen3_tts_engine.request import VoicePrompt

PATIENCE_S = 3.0  # less than the supervisor's with a silent model, which it would end for the store's sake
RESPITE_S = 5.0  # after a store said nothing, until it is asked again
MAX_UNANSWERED = 4  # threads that wait for it


class Lookup:
    """Calls `find`, and gives up on it in time.

    One thread lets every request of a model in. Without this a store that drops packets would hold them all
    up, the supervisor's canary too, for as long as its driver tries.
    """

    def __init__(
        self,
        find: Callable[[str], VoicePrompt],
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._patience_s = patience_s
        self._clock = clock
        self._pool = ThreadPoolExecutor(MAX_UNANSWERED, thread_name_prefix="voices")
        self._respite_ends_s = clock()

    def __call__(self, name: str) -> VoicePrompt:
        """The voice.

        Raises:
            EngineFailed: where the store has not answered in time, and at once for a while after that.
            SpeechError: what `find` raises.
        """
        if self._clock() < self._respite_ends_s:
            raise EngineFailed("the voice store did not answer a moment ago, and is given a rest")
        finding = self._pool.submit(self._find, name)
        try:
            return finding.result(self._patience_s)
        except concurrent.futures.TimeoutError:
            finding.cancel()
            self._respite_ends_s = self._clock() + RESPITE_S
            raise EngineFailed(f"the voice store has not answered for {self._patience_s:g} s") from None
