"""Several speeches in one request, as vllm-omni's `/v1/audio/speech/batch` has it: each fares on its own."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3_tts_gateway.answering import told
from qwen3_tts_gateway.caller import Gate, Synth
from qwen3_tts_gateway.documenting import OPENAI_ERRORS
from qwen3_tts_gateway.errors import KNOWN_ERRORS, invalid_input
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.routes.dialects import without_nulls
from qwen3_tts_gateway.routes.openai import SpeechBody, speech_of
from qwen3_tts_gateway.settings import MOST_BATCH_ITEMS
from qwen3_tts_gateway.sound import base64_text
from qwen3_tts_gateway.speech import check_batch
from qwen3_tts_gateway.threads import in_thread

router = APIRouter(prefix="/v1/audio", tags=["OpenAI"], responses=OPENAI_ERRORS)

VOICE_FIELDS = frozenset(("voice", "speaker", "ref_audio", "references", "speaker_embedding"))


class BatchBody(BaseModel):
    """Items are bodies of `/v1/audio/speech`; any other field here is the default for all of them."""

    model_config = ConfigDict(extra="allow")

    items: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_BATCH_ITEMS)


class Result(BaseModel):
    """What became of one item, null where there is nothing to say; `error` is a sentence."""

    index: int
    status: Literal["success", "error"]
    audio_data: str | None = None
    media_type: str | None = None
    error: str | None = None
    usage: dict[str, int] | None = None


class BatchAnswer(BaseModel):
    """`audio_data` is base64; the results are in the order of the items."""

    id: str
    results: list[Result]
    total: int
    succeeded: int
    failed: int


@router.post("/speech/batch", response_model=BatchAnswer)
async def speak_batch(body: BatchBody, gate: Gate, key: Synth) -> Response:
    """Speak several texts; the audio comes as base64, an item that fails says why."""
    defaults = body.model_extra or {}
    items = [without_nulls(item) for item in body.items]
    texts = [item.get("input", defaults.get("input")) for item in items]
    check_batch(texts, gate.settings, param="items")
    speaking = [_item(index, _over(defaults, item), gate, key) for index, item in enumerate(items)]
    results = await gate.narrator.together(speaking, key)
    num_failed = sum(result.status == "error" for result in results)
    answer = BatchAnswer(
        id=f"speech-batch-{uuid.uuid4().hex}",
        results=results,
        total=len(results),
        succeeded=len(results) - num_failed,
        failed=num_failed,
    )
    return Response(await in_thread(answer.model_dump_json), media_type="application/json")


def _over(defaults: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    """An item that says whose voice it wants does not want the default's, however either puts it."""
    replaced = VOICE_FIELDS if VOICE_FIELDS & set(item) else frozenset()
    return {name: value for name, value in defaults.items() if name not in replaced} | item


async def _item(index: int, fields: dict[str, Any], gate: Gateway, key: Key) -> Result:
    try:
        return Result(index=index, status="success", **await _spoken(fields, gate, key))
    except (*KNOWN_ERRORS, ValidationError) as error:
        return Result(index=index, status="error", error=told(_known(error)))


async def _spoken(fields: dict[str, Any], gate: Gateway, key: Key) -> dict[str, Any]:
    speech = await speech_of(SpeechBody.model_validate(fields), gate)
    utterance = gate.narrator.utterance(speech, key)
    return {
        "audio_data": await in_thread(base64_text, await utterance.whole()),
        "media_type": speech.sound.media_type,
        "usage": utterance.usage,
    }


def _known(error: Exception) -> Exception:
    if not isinstance(error, ValidationError):
        return error
    problem = error.errors()[0]
    return invalid_input(problem, problem["loc"], whole="item")
