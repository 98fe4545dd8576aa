"""OpenAI's speech API, with what vllm-omni adds to it.

Shapes: https://platform.openai.com/docs/api-reference/audio/createSpeech and vllm-omni's `/v1/audio/speech`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from qwen3_tts_client import DesignedVoice, Saved, SpeechOptions
from qwen3_tts_gateway import sse
from qwen3_tts_gateway.answering import error_object
from qwen3_tts_gateway.body import Body
from qwen3_tts_gateway.caller import Gate, Synth, SynthOrNobody
from qwen3_tts_gateway.disconnects import LiveResponse
from qwen3_tts_gateway.documenting import OPENAI_ERRORS, SPEECH
from qwen3_tts_gateway.errors import InvalidInput, NotFound
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.recordings import Embedding, Reference, embedded_voice
from qwen3_tts_gateway.routes.dialects import id_of, translated
from qwen3_tts_gateway.routes.voices import voices
from qwen3_tts_gateway.sound import FORMATS, SAMPLE_RATES, Sound, base64_text
from qwen3_tts_gateway.speech import CallersVoice, Language, Speech, Utterance, checked_text

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=OPENAI_ERRORS)

MODELS = ("qwen3-tts", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Names that applications send; all of them mean the one server that is here."""


# Fields that mean the same to the engine, under the same names.
_ENGINES_OWN = {
    "seed",
    "non_streaming_mode",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "subtalker_do_sample",
    "subtalker_temperature",
    "subtalker_top_k",
    "subtalker_top_p",
}
_EXTRA = _ENGINES_OWN | {"max_new_tokens"}


class SpeechBody(Body):
    """What to say, in which voice, heard how.

    Fields that are not here are ignored, as OpenAI does; a field that is null is absent.
    """

    input: str
    model: str = "qwen3-tts"
    voice: Annotated[str | None, BeforeValidator(id_of)] = Field(
        None, validation_alias=AliasChoices("voice", "speaker")
    )
    instructions: str | None = Field(None, max_length=4096)
    response_format: str = Field("mp3", json_schema_extra={"enum": [*FORMATS]})
    speed: float = Field(1.0, description="0.25 to 4; the pitch stays")
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool | None = Field(
        None, description="null: streamed, but for wav, whose header wants its length"
    )
    sample_rate: int | None = Field(None, json_schema_extra={"enum": [None, *SAMPLE_RATES]})

    task_type: Annotated[
        Literal["CustomVoice", "VoiceDesign", "Base"] | None, BeforeValidator(lambda given: given or None)
    ] = None
    language: Language | None = None
    ref_audio: str | None = Field(
        None, description="a recording: base64, a data: URL or, where allowed, https"
    )
    ref_text: str | None = None
    x_vector_only_mode: bool = False
    speaker_embedding: Embedding | None = None
    references: list[dict[str, Any]] | None = Field(
        None, description="ref_audio and ref_text in vllm-omni's other words: one object, audio_path and text"
    )
    extra_params: dict[str, Any] | None = Field(
        None, description=f"more of the fields here: {', '.join(sorted(_EXTRA))}"
    )

    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_new_tokens: int | None = Field(
        None, ge=2, le=2**31, description="one more than the frames of 80 ms at most"
    )
    non_streaming_mode: bool | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = None
    repetition_penalty: float | None = None
    subtalker_do_sample: bool | None = None
    subtalker_temperature: float | None = None
    subtalker_top_k: int | None = Field(None, ge=0, lt=2**31)
    subtalker_top_p: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, body: Any) -> Any:
        return translated(body, _EXTRA) if isinstance(body, dict) else body

    @property
    def is_streamed(self) -> bool:
        return self.response_format != "wav" if self.stream is None else self.stream


@router.post("/audio/speech", response_class=Response, responses=SPEECH)
async def speak(body: SpeechBody, gate: Gate, key: Synth) -> Response:
    """Speech as a file or, as it is being spoken, as a stream of bytes or Server-Sent Events."""
    speech = await speech_of(body, gate)
    utterance = gate.narrator.utterance(speech, key)
    if body.stream_format == "sse":
        events = _events(utterance, speech)
        return await LiveResponse.begin(events, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
    if body.is_streamed:
        return await LiveResponse.begin(utterance.pieces(), media_type=speech.sound.media_type)
    return Response(await utterance.whole(), media_type=speech.sound.media_type)


@router.get("/models")
async def models() -> dict[str, Any]:
    """The names that `model` may have here, and what applications that look for one find."""
    return {"object": "list", "data": [_model(name) for name in MODELS]}


@router.get("/models/{name}")
async def model(name: str, gate: Gate, key: SynthOrNobody) -> dict[str, Any]:
    """One of them, with the voices it has, as Speaches tells them."""
    if name not in MODELS:
        raise NotFound(f"there is no model {name!r}; there are {', '.join(MODELS)}", param="model")
    return _model(name) | {"task": "text-to-speech", "voices": (await voices(gate, key))["voices"]}


@router.get("/audio/models")
async def audio_models() -> dict[str, Any]:
    """The same names as Open WebUI asks for them."""
    return {"models": [{"id": name} for name in MODELS]}


@router.get("/test")
async def test() -> dict[str, str]:
    """By this answer wyoming_openai recognises a server that lists its voices."""
    return {"status": "ok"}


async def speech_of(body: SpeechBody, gate: Gateway) -> Speech:
    """What a body asks for.

    Raises:
        InvalidInput: it contradicts itself, or asks for what there is not.
    """
    text = checked_text(body.input, gate.settings.max_characters, param="input")
    sound = Sound(body.response_format, body.sample_rate, body.speed)
    voice = await voice_of(body, gate)
    is_designed = isinstance(voice, DesignedVoice)
    options = SpeechOptions(
        instruct=None if is_designed else (body.instructions or None),
        max_frames=None if body.max_new_tokens is None else body.max_new_tokens - 1,
        **cast(SpeechOptions, body.model_dump(include=_ENGINES_OWN)),
    )
    return Speech(text, voice, sound, body.language, options)


async def voice_of(body: SpeechBody, gate: Gateway) -> CallersVoice:
    """A recording, an embedding, a description or a name: whichever the body brings.

    OpenAI's clients always send a `voice`; a recording or an embedding goes before it.

    Raises:
        InvalidInput: the voice, the task_type and the instructions do not go together.
    """
    if body.ref_audio is not None or body.speaker_embedding is not None:
        return _brought(body)
    if body.task_type == "VoiceDesign" or (body.task_type is None and body.instructions and not body.voice):
        return _designed(body)
    if body.voice:
        await _check_name(body.voice, body, gate)
    elif body.task_type == "Base":
        raise InvalidInput(
            "task_type is 'Base'; it needs ref_audio, speaker_embedding or a saved voice", param="voice"
        )
    return body.voice


def _brought(body: SpeechBody) -> CallersVoice:
    """The voice that came along with the request."""
    if body.task_type not in (None, "Base"):
        raise InvalidInput(
            f"task_type is {body.task_type!r}; only Base speaks in a recorded voice", param="task_type"
        )
    if body.instructions:
        raise InvalidInput("a recorded voice takes no instructions; leave them out", param="instructions")
    if body.speaker_embedding is None:
        assert body.ref_audio is not None
        return Reference(body.ref_audio, body.ref_text, body.x_vector_only_mode, param="ref_audio")
    if body.ref_audio is not None:
        raise InvalidInput("give ref_audio or speaker_embedding, not both", param="speaker_embedding")
    return embedded_voice(body.speaker_embedding)


async def _check_name(name: str, body: SpeechBody, gate: Gateway) -> None:
    """Whether a speaker or a saved voice is meant, the rest of the body must agree with it."""
    async with gate.keeper.using("voices"):
        found = await gate.names.resolve(name, owner="")  # whose it is makes no difference to what it is
    if isinstance(found, Saved) and body.task_type == "CustomVoice":
        raise InvalidInput(
            f"voice is {name!r}; task_type 'CustomVoice' speaks with built-in speakers only", param="voice"
        )
    if isinstance(found, Saved) and body.instructions:
        raise InvalidInput(
            f"voice is {name!r}; only built-in speakers take instructions", param="instructions"
        )
    if not isinstance(found, Saved) and body.task_type == "Base":
        raise InvalidInput(
            f"voice is {name!r}, a built-in speaker; task_type 'Base' speaks with saved voices", param="voice"
        )


def _designed(body: SpeechBody) -> DesignedVoice:
    if not (body.instructions or "").strip():
        raise InvalidInput(
            "task_type is 'VoiceDesign'; it needs instructions: the voice in words", param="instructions"
        )
    if body.voice:
        raise InvalidInput(
            f"voice is {body.voice!r}; VoiceDesign takes instructions in its place", param="voice"
        )
    return DesignedVoice(body.instructions or "")


def _events(utterance: Utterance, speech: Speech) -> AsyncGenerator[bytes, None]:
    """OpenAI's events."""
    return sse.narrated(
        utterance.pieces(),
        audio=lambda piece: _event("delta", audio=base64_text(piece), response_format=speech.sound.format),
        failed=lambda error: _event("error", error=error_object(error)),
        done=lambda: _event("done", usage=utterance.usage),
    )


def _event(kind: str, **fields: Any) -> bytes:
    name = f"speech.audio.{kind}"
    return sse.event(name, {"type": name, **fields})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_768_953_600, "owned_by": "Qwen"}
