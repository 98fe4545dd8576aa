"""What the routes work with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from qwen3_tts_client import AsyncSpeechClient
from qwen3_tts_gateway.keys import KeyRing
from qwen3_tts_gateway.limits import Limits
from qwen3_tts_gateway.loading import ModelKeeper
from qwen3_tts_gateway.naming import VoiceNames
from qwen3_tts_gateway.settings import Settings
from qwen3_tts_gateway.shutdown import Shutdown
from qwen3_tts_gateway.speech import Narrator
from qwen3_tts_gateway.tracing import trace_headers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gateway:
    """One gateway's parts, as `app.state.gateway`."""

    settings: Settings
    tts: AsyncSpeechClient
    keys: KeyRing
    limits: Limits
    names: VoiceNames
    keeper: ModelKeeper
    narrator: Narrator
    shutdown: Shutdown

    @classmethod
    def assemble(cls, settings: Settings) -> Gateway:
        """One that is not running yet, and connected to nothing.

        Raises:
            KeyFileError, ValueError: a setting asks for what cannot be; the message names it.
        """
        tts = AsyncSpeechClient(
            settings.triton_url,
            timeout_s=settings.chunk_timeout_s,
            queue_timeout_s=settings.queue_timeout_s,
            root_certificates=settings.triton_ca_file,
            api_key=settings.triton_api_key,
            headers=trace_headers,
        )
        limits = Limits(settings)
        unload_after_s = settings.unload_after_minutes and settings.unload_after_minutes * 60
        keeper = ModelKeeper(tts, preloaded=settings.preload_models, unload_after_s=unload_after_s)
        names = VoiceNames(tts, settings.openai_voices)
        narrator = Narrator(tts, names, keeper, limits, settings.reference_hosts)
        return cls(settings, tts, KeyRing(settings), limits, names, keeper, narrator, Shutdown())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside the block it connects to Triton, once a request needs it; it is closed after the block."""
        if self.keys.is_open:
            log.warning("no API keys are configured: whoever reaches this gateway may use it")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.tts)
            stack.push_async_callback(self.limits.close)
            stack.push_async_callback(self.keeper.close)
            tidying = asyncio.create_task(self.keeper.keep_tidy())
            stack.callback(tidying.cancel)
            yield
