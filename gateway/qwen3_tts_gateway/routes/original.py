"""The original Qwen3-TTS API server's routes: its bodies, headers and event names, each stream a real one.

Shapes: https://github.com/linkary/qwen-tts-server.
"""

from __future__ import annotations

import io
import re
import uuid
import wave
import zipfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from qwen3_tts_client import DesignedVoice, Saved, SpeechOptions, UnknownVoice, Voice
from qwen3_tts_gateway import sse
from qwen3_tts_gateway.answering import told
from qwen3_tts_gateway.body import Body
from qwen3_tts_gateway.caller import Gate, Synth, VoiceOwner
from qwen3_tts_gateway.disconnects import LiveResponse
from qwen3_tts_gateway.documenting import EVENTS, ORIGINAL_ERRORS, WAV_OR_JSON, ZIP_OR_JSON
from qwen3_tts_gateway.errors import InvalidInput, NotFound
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.naming import PROMPT_PREFIX, is_name, stored_name
from qwen3_tts_gateway.recordings import Reference, uploaded_recording
from qwen3_tts_gateway.settings import MOST_BATCH_ITEMS
from qwen3_tts_gateway.sound import Sound, base64_text
from qwen3_tts_gateway.speech import CallersVoice, Language, Speech, Utterance, check_batch, checked_text
from qwen3_tts_gateway.threads import in_thread

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")  # of files: a speaker is any text

router = APIRouter(prefix="/api/v1", responses=ORIGINAL_ERRORS)

SAMPLE_RATE = 24000
FIGURES = ("X-Generation-Time", "X-Audio-Duration", "X-RTF", "X-Cache-Status")
"""Of every WAV file, in its headers."""
MOST_UPLOAD_BYTES = 5 << 20
AUDIO_TYPES = ("audio/", "application/octet-stream", "video/mp4", "video/ogg")
"""How the Content-Type of a recording begins; some clients call M4A and Ogg files films."""
NO_CACHE = {
    "enabled": False,
    "message": "There is no cache: no audio is kept, and prompts are kept until they are deleted.",
}
ResponseFormat = Literal["wav", "base64"]
Text = Annotated[str, Field(min_length=1)]


class Manner(Body):
    """What every request of one utterance says besides its voice."""

    text: Text
    language: Language = "Auto"
    speed: float = Field(1.0, ge=0.5, le=2.0)
    response_format: ResponseFormat = "wav"


class CustomVoiceBody(Manner):
    speaker: str
    instruct: str | None = None


class VoiceDesignBody(Manner):
    instruct: Text


class ReferenceBody(Body):
    """A recording, one way or the other, and what is said in it."""

    ref_audio_url: str | None = None
    ref_audio_base64: str | None = None
    ref_text: str | None = None
    x_vector_only_mode: bool = False


class CloneBody(Manner, ReferenceBody):
    pass


class PromptBody(Manner):
    prompt_id: str


class BatchManner(Body):
    """`wav` was always answered as `base64` is, and so was `zip` before there was one: hence the default."""

    texts: list[Text] = Field(min_length=1, max_length=MOST_BATCH_ITEMS)
    languages: list[Language] | None = Field(None, max_length=MOST_BATCH_ITEMS)
    speed: float = Field(1.0, ge=0.5, le=2.0)
    response_format: Literal["base64", "zip", "wav"] = "base64"


class CustomVoiceBatchBody(BatchManner):
    speakers: list[str] = Field(max_length=MOST_BATCH_ITEMS)
    instructs: list[str | None] | None = Field(None, max_length=MOST_BATCH_ITEMS)


class VoiceDesignBatchBody(BatchManner):
    instructs: list[str] = Field(max_length=MOST_BATCH_ITEMS)


@router.post("/custom-voice/generate", tags=["CustomVoice"], response_class=Response, responses=WAV_OR_JSON)
async def custom_voice(body: CustomVoiceBody, gate: Gate, key: Synth) -> Response:
    """Speak with a built-in speaker."""
    return await _whole(_custom_voice(body, gate), f"custom_voice_{body.speaker}", body, gate, key)


@router.post("/custom-voice/generate-stream", tags=["CustomVoice"], response_class=Response, responses=EVENTS)
async def custom_voice_stream(body: CustomVoiceBody, gate: Gate, key: Synth) -> Response:
    """Speak with a built-in speaker; Server-Sent Events `metadata`, `audio` (a WAV each, base64), `done`."""
    return await _stream(_custom_voice(body, gate), gate, key)


@router.post("/custom-voice/batch", tags=["CustomVoice"], response_class=Response, responses=ZIP_OR_JSON)
async def custom_voice_batch(body: CustomVoiceBatchBody, gate: Gate, key: Synth) -> Response:
    """Speak several texts, as base64 in JSON or as a ZIP of WAV files."""
    speakers = _one_each(body.speakers, body, "speakers")
    instructs = _one_each(body.instructs or None, body, "instructs")
    voices = [
        (speaker, SpeechOptions(instruct=instruct or None))
        for speaker, instruct in zip(speakers, instructs, strict=True)
    ]
    return await _batch(voices, body, gate, key)


@router.get("/custom-voice/speakers", tags=["CustomVoice"])
async def speakers(gate: Gate, key: Synth) -> dict[str, Any]:
    """The built-in speakers of the checkpoint."""
    async with gate.keeper.using("voices"):
        found = await gate.tts.voices.speakers()
    return {"speakers": [vars(speaker) for speaker in found]}


@router.get("/custom-voice/languages", tags=["CustomVoice"])
async def languages(gate: Gate, key: Synth) -> dict[str, Any]:
    """The languages of the checkpoint."""
    async with gate.keeper.using("voices"):
        return {"languages": await gate.tts.voices.languages()}


@router.post("/voice-design/generate", tags=["VoiceDesign"], response_class=Response, responses=WAV_OR_JSON)
async def voice_design(body: VoiceDesignBody, gate: Gate, key: Synth) -> Response:
    """Speak in a voice that is described in words."""
    return await _whole(_voice_design(body, gate), "voice_design", body, gate, key)


@router.post("/voice-design/generate-stream", tags=["VoiceDesign"], response_class=Response, responses=EVENTS)
async def voice_design_stream(body: VoiceDesignBody, gate: Gate, key: Synth) -> Response:
    """As `generate`, in the events of `custom-voice/generate-stream`."""
    return await _stream(_voice_design(body, gate), gate, key)


@router.post("/voice-design/batch", tags=["VoiceDesign"], response_class=Response, responses=ZIP_OR_JSON)
async def voice_design_batch(body: VoiceDesignBatchBody, gate: Gate, key: Synth) -> Response:
    """Speak several texts, each in a voice of its own description."""
    instructs = _one_each(body.instructs, body, "instructs")
    voices = [(_designed(instruct), SpeechOptions()) for instruct in instructs]
    return await _batch(voices, body, gate, key)


@router.post("/base/clone", tags=["Base"], response_class=Response, responses=WAV_OR_JSON)
async def clone(body: CloneBody, gate: Gate, key: Synth) -> Response:
    """Speak in the voice of a recording."""
    return await _whole(_clone(body, gate), "voice_clone", body, gate, key)


@router.post("/base/clone-stream", tags=["Base"], response_class=Response, responses=EVENTS)
async def clone_stream(body: CloneBody, gate: Gate, key: Synth) -> Response:
    """As `clone`, in the events of `custom-voice/generate-stream`."""
    return await _stream(_clone(body, gate), gate, key)


@router.post("/base/create-prompt", tags=["Base"])
async def create_prompt(body: ReferenceBody, gate: Gate, key: VoiceOwner) -> dict[str, str]:
    """Listen to a recording once and keep what was heard for `generate-with-prompt`, restarts or not."""
    prompt_id = uuid.uuid4().hex
    await gate.narrator.save(PROMPT_PREFIX + prompt_id, _reference(body), key)
    return {"prompt_id": prompt_id, "message": "Prompt created successfully"}


@router.post("/base/generate-with-prompt", tags=["Base"], response_class=Response, responses=WAV_OR_JSON)
async def generate_with_prompt(body: PromptBody, gate: Gate, key: Synth) -> Response:
    """Speak in the voice of a prompt that was created before."""
    prompt = await _prompt(body.prompt_id, gate, key)
    return await _whole(_speech(body, prompt, gate), "voice_clone_prompt", body, gate, key)


@router.post("/base/upload-ref-audio", tags=["Base"])
async def upload_reference(file: UploadFile, key: Synth) -> dict[str, Any]:
    """A recording as base64, to be sent as `ref_audio_base64`; nothing is kept."""
    if not (file.content_type or "").lower().startswith(AUDIO_TYPES):
        raise InvalidInput("Invalid file type. Must be audio file.", param="file")
    recording = await uploaded_recording(file, most_bytes=MOST_UPLOAD_BYTES, param="file")
    return {
        "filename": file.filename,
        "content_type": file.content_type,
        "audio_base64": await in_thread(base64_text, recording),
        "message": "File uploaded and encoded successfully",
    }


@router.get("/base/cache/stats", tags=["Base"])
async def cache_stats(key: Synth) -> dict[str, Any]:
    """What the original says where its cache is switched off."""
    return NO_CACHE


@router.post("/base/cache/clear", tags=["Base"])
async def clear_cache(key: Synth) -> dict[str, Any]:
    """As `stats`: there is nothing to clear."""
    return NO_CACHE


def _custom_voice(body: CustomVoiceBody, gate: Gateway) -> Speech:
    return _speech(body, body.speaker, gate, SpeechOptions(instruct=body.instruct or None))


def _voice_design(body: VoiceDesignBody, gate: Gateway) -> Speech:
    return _speech(body, _designed(body.instruct), gate)


def _clone(body: CloneBody, gate: Gateway) -> Speech:
    return _speech(body, _reference(body), gate)


def _speech(body: Manner, voice: CallersVoice, gate: Gateway, options: SpeechOptions | None = None) -> Speech:
    text = checked_text(body.text, gate.settings.max_characters, param="text")
    sound = Sound("wav", SAMPLE_RATE, body.speed)
    return Speech(text, voice, sound, body.language, options or SpeechOptions())


def _designed(instruct: str) -> DesignedVoice:
    if not instruct.strip():
        raise InvalidInput("instruct is empty; say in words what the voice is like", param="instruct")
    return DesignedVoice(instruct)


def _reference(body: ReferenceBody) -> Reference:
    given = {"ref_audio_url": body.ref_audio_url, "ref_audio_base64": body.ref_audio_base64}
    if len(recordings := [(param, value) for param, value in given.items() if value]) != 1:
        raise InvalidInput("give ref_audio_url or ref_audio_base64, one of them", param="ref_audio_base64")
    [(param, recording)] = recordings
    return Reference(recording, body.ref_text, body.x_vector_only_mode, param)


async def _prompt(prompt_id: str, gate: Gateway, key: Key) -> Saved:
    """The voice of a prompt that this key has created.

    Raises:
        NotFound: there is none, or it is another key's.
    """
    unknown = NotFound(f"there is no prompt {prompt_id!r}", param="prompt_id")
    if not is_name(PROMPT_PREFIX + prompt_id):  # nobody can have saved it
        raise unknown
    name = stored_name(key.owner, PROMPT_PREFIX + prompt_id)
    try:
        async with gate.keeper.using("voices"):
            await gate.tts.voices.describe(name)
    except UnknownVoice:
        raise unknown from None
    return Saved(name)


async def _whole(speech: Speech, name: str, body: Manner, gate: Gateway, key: Key) -> Response:
    """A file of this name, or what is in it as JSON."""
    utterance = gate.narrator.utterance(speech, key)
    wav = await utterance.whole()
    if body.response_format == "base64":
        return await in_thread(_one_in_json, wav)
    file = f"attachment; filename={_NOT_IN_NAMES.sub('_', name)[:80]}.wav"
    return Response(wav, media_type="audio/wav", headers={"Content-Disposition": file, **_figures(utterance)})


def _figures(utterance: Utterance) -> dict[str, str]:
    rtf = utterance.generation_s / max(utterance.duration_s, 1e-9)
    times = (f"{seconds:.3f}" for seconds in (utterance.generation_s, utterance.duration_s, rtf))
    return dict(zip(FIGURES, (*times, "disabled"), strict=True))


async def _stream(speech: Speech, gate: Gateway, key: Key) -> Response:
    streamed = replace(speech, sound=replace(speech.sound, format="pcm"))
    events = _events(gate.narrator.utterance(streamed, key))
    return await LiveResponse.begin(events, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


def _events(utterance: Utterance) -> AsyncGenerator[bytes, None]:
    """`metadata` comes with the first audio, so that what is refused is refused with a status of its own."""
    return sse.narrated(
        utterance.pieces(),
        head=sse.event("metadata", {"sample_rate": SAMPLE_RATE}),
        audio=lambda pcm: sse.event("audio", base64_text(_wav(pcm))),
        failed=lambda error: sse.event("error", {"detail": told(error)}),
        done=lambda: sse.event("done", "complete"),
    )


async def _batch(
    voices: Sequence[tuple[Voice, SpeechOptions]],
    body: BatchManner,
    gate: Gateway,
    key: Key,
) -> Response:
    check_batch(body.texts, gate.settings, param="texts")
    languages = _one_each(body.languages, body, "languages")
    speeches = [
        _speech(Manner(text=text, language=language or "Auto", speed=body.speed), voice, gate, options)
        for text, language, (voice, options) in zip(body.texts, languages, voices, strict=True)
    ]
    wavs = await gate.narrator.recite_all(speeches, key)
    if body.response_format == "zip":
        return Response(await in_thread(_zipped, wavs), media_type="application/zip")
    return await in_thread(_several_in_json, wavs)


def _one_each(given: Sequence[Any] | None, body: BatchManner, param: str) -> Sequence[Any]:
    """One for each text; None for each where none were given."""
    if given is None:
        return [None] * len(body.texts)
    if len(given) != len(body.texts):
        raise InvalidInput(f"{len(given)} {param} for {len(body.texts)} texts", param=param)
    return given


def _one_in_json(wav: bytes) -> Response:
    return JSONResponse({"audio": base64_text(wav), "sample_rate": SAMPLE_RATE, "format": "wav"})


def _several_in_json(wavs: Sequence[bytes]) -> Response:
    audios = [base64_text(wav) for wav in wavs]
    return JSONResponse({"audios": audios, "sample_rate": SAMPLE_RATE, "format": "wav"})


def _zipped(wavs: Sequence[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # audio hardly deflates
        for index, wav in enumerate(wavs):
            archive.writestr(f"audio_{index}.wav", wav)
    return file.getvalue()


def _wav(pcm: bytes) -> bytes:
    """16-bit samples as a file of their own."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes(pcm)
    return file.getvalue()
