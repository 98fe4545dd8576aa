"""What the gateway says about itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from qwen3_tts_client import ModelState, SpeechError
from qwen3_tts_gateway.answering import told
from qwen3_tts_gateway.caller import Gate, KnownCaller
from qwen3_tts_gateway.keys import Key

router = APIRouter(tags=["service"])

TALKERS = {
    "custom_voice_loaded": "qwen3_tts_custom_voice",
    "voice_design_loaded": "qwen3_tts_voice_design",
    "base_loaded": "qwen3_tts_base",
}


@router.head("/", include_in_schema=False)
@router.get("/")
async def about(request: Request) -> dict[str, Any]:
    """What this is and where to go on."""
    return {
        "name": request.app.title,
        "version": request.app.version,
        "docs": "/docs",
        "health": "/health",
        "playground": "/playground",
    }


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """The gateway is alive; `/health/models` knows about Triton."""
    return {"status": "healthy", "version": request.app.version}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", responses={503: {"description": "It is being stopped"}})
async def readiness(gate: Gate) -> Response:
    """Whether to send callers here. Triton has no say in it: another gateway would do no better."""
    if gate.shutdown.is_announced:
        return JSONResponse({"status": "leaving"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/health/models")
async def health_of_models(gate: Gate, key: KnownCaller) -> dict[str, Any]:
    """Which models can speak, and the state of each: READY, LOADING, UNLOADING or UNAVAILABLE.

    Why, in Triton's words, is for those who may call: they name files and hosts.
    """
    try:
        models = await gate.tts.models.list()
    except SpeechError as error:
        return dict.fromkeys([*TALKERS, "tokenizer_loaded"], False) | {"triton": told(error), "models": {}}
    ready = {model.name for model in models if model.is_ready}
    loaded = {field: model in ready for field, model in TALKERS.items()}
    return {
        **loaded,
        "tokenizer_loaded": any(loaded.values()),  # each talker brings its own
        "triton": "ready",
        "models": {model.name: _state_of(model, key) for model in models},
    }


def _state_of(model: ModelState, key: Key | None) -> dict[str, str]:
    return {"state": model.state} if key is None else {"state": model.state, "reason": model.reason}


@router.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
