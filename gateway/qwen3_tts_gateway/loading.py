"""Models that are loaded on first use, and unloaded when nobody has used them for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from qwen3_tts_client import AsyncSpeechClient, SpeechError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 15.0

PARTS = {"create_voice": ("reference_audio", "voice_encoder")}
"""Of ensembles: Triton loads them along, and does not unload them along."""


class ModelKeeper:
    """Knows which models are in use; with preloading, it has nothing to do.

    Each process keeps its own account: where several gateways share a Triton, let none of them unload.
    """

    def __init__(
        self,
        tts: AsyncSpeechClient,
        *,
        preloaded: bool,
        unload_after_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tts = tts
        self._preloaded = preloaded
        self._unload_after_s = unload_after_s
        self._clock = clock
        self._locks: dict[str, asyncio.Lock] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._num_users: Counter[str] = Counter()
        self._last_used_s: dict[str, float] = {}  # of those that were loaded for somebody

    @asynccontextmanager
    async def using(self, model: str) -> AsyncIterator[None]:
        """The model is loaded inside the block, and stays so.

        Raises:
            EngineFailed: it cannot be loaded; the message says why.
            ServerUnavailable: there is no server, or the loading takes too long.
        """
        if self._preloaded:
            yield
            return
        self._num_users[model] += 1
        try:
            await self._loaded(model)
            yield
        finally:
            self._num_users[model] -= 1
            if model in self._last_used_s:
                self._last_used_s[model] = self._clock()

    async def unload_idle(self) -> list[str]:
        """Unload what nobody uses and nobody has used for as long as is allowed; returns which."""
        return [model for model in tuple(self._last_used_s) if await self._unload_if_idle(model)]

    async def keep_tidy(self) -> None:
        """Unload what is idle, for as long as this runs."""
        while self._unload_after_s is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.unload_idle()

    async def close(self) -> None:
        """Wait no longer for models that nobody waits for."""
        for load in self._loads.values():
            load.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    async def _loaded(self, model: str) -> None:
        """All who wait for a model share one load and its outcome; who hangs up ends it for nobody else."""
        if model not in self._loads:
            self._loads[model] = load = asyncio.create_task(self._load(model))
            load.add_done_callback(lambda _: self._end_load(model))
        await asyncio.shield(self._loads[model])

    def _end_load(self, model: str) -> None:
        load = self._loads.pop(model)
        if not load.cancelled() and (error := load.exception()):
            log.warning("could not load", extra={"model": model, "reason": str(error)})

    async def _load(self, model: str) -> None:
        async with self._lock(model):
            if not await self._tts.models.ready(model):
                log.info("loading on first use", extra={"model": model})
                await self._tts.models.ensure_loaded(model)
            self._last_used_s[model] = self._clock()

    async def _unload_if_idle(self, model: str) -> bool:
        async with self._lock(model):
            if not self._is_idle(model):
                return False
            try:
                for part in (model, *PARTS.get(model, ())):
                    await self._tts.models.unload(part)
            except SpeechError as error:  # Triton is away or restarts; whoever speaks will hear of it
                log.warning("could not unload an idle model", extra={"model": model, "reason": str(error)})
                return False
            del self._last_used_s[model]
            log.info("unloaded, nobody used it", extra={"model": model})
            return True

    def _is_idle(self, model: str) -> bool:
        if self._unload_after_s is None or self._num_users[model]:
            return False
        return self._clock() - self._last_used_s[model] >= self._unload_after_s

    def _lock(self, model: str) -> asyncio.Lock:
        return self._locks.setdefault(model, asyncio.Lock())
