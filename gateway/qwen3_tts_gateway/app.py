"""The ASGI application: routes, what stands around them, how it begins and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from qwen3_tts_gateway.answering import BugReporter, answer_errors
from qwen3_tts_gateway.body import BodyLimit
from qwen3_tts_gateway.disconnects import CancelOnDisconnect
from qwen3_tts_gateway.doorkeeper import Doorkeeper
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.observing import Observer
from qwen3_tts_gateway.routes import batch, conversation, openai, original, playground, service, voices
from qwen3_tts_gateway.routes.original import FIGURES
from qwen3_tts_gateway.settings import Settings
from qwen3_tts_gateway.shutdown import CloseConnections
from qwen3_tts_gateway.tracing import Tracing

ROUTERS = (
    service.router,
    playground.router,
    original.router,
    openai.router,
    batch.router,
    conversation.router,
    voices.router,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """A gateway that is not running yet.

    Raises:
        KeyFileError, ValueError: a setting asks for what cannot be; the message names it.
    """
    settings = settings or Settings()
    gateway = Gateway.assemble(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                stack.push_async_callback(asyncio.to_thread, tracing.close)
            await stack.enter_async_context(gateway.running())
            yield

    app = FastAPI(
        title="Qwen3-TTS",
        version=version("qwen3-tts-inference-server"),
        description="Speech from Qwen3-TTS: the original REST API, and OpenAI's.",
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    answer_errors(app)
    for router in ROUTERS:
        # As they are: `include_router` builds each anew when the first request comes, who waits 0.1 s for it.
        app.router.routes.extend(router.routes)
    app.add_middleware(BugReporter)
    app.add_middleware(Doorkeeper)
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(BodyLimit)
    if settings.cors_origins:
        # Keys travel in headers of the caller's own making; the browser's credentials are never asked for.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", *FIGURES],
        )
    app.add_middleware(Observer)
    app.add_middleware(CloseConnections, shutdown=gateway.shutdown)
    endpoint = settings.otel_exporter_otlp_endpoint
    tracing = Tracing.begin(app, endpoint) if endpoint else None
    return app
