"""Voices over HTTP: OpenAI's and vllm-omni's `/v1/audio/voices` in one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Form, UploadFile
from pydantic import TypeAdapter, ValidationError

from qwen3_tts_client import ClonedVoice, SavedVoice, Speaker, VoicePrompt
from qwen3_tts_gateway.caller import Gate, Synth, SynthOrNobody, VoiceOwner
from qwen3_tts_gateway.documenting import OPENAI_ERRORS
from qwen3_tts_gateway.errors import InvalidInput, NotFound
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.naming import check_new_name, names_in, stored_name, visible_name
from qwen3_tts_gateway.recordings import Embedding, embedded_voice, uploaded_recording

router = APIRouter(prefix="/v1/audio", tags=["voices"], responses=OPENAI_ERRORS)

_EMBEDDING: TypeAdapter[Embedding] = TypeAdapter(Embedding)


@router.get("/voices")
async def voices(gate: Gate, key: SynthOrNobody, legacy: bool = False) -> dict[str, Any]:
    """Everything `voice` can say: speakers, OpenAI's names for them, and the voices of this key.

    `legacy` lists names alone, as some applications expect. Without a key only what is built in is listed.
    """
    async with gate.keeper.using("voices"):
        speakers = await gate.tts.voices.speakers()
        saved = [] if key is None else await _saved(gate, key)
    listed = [
        *(_built_in(speaker.name, speaker) for speaker in speakers),
        *_aliases(gate, speakers, {name for name, _ in saved}),
        *({"id": name, "name": name, "kind": "saved"} for name, _ in saved),
    ]
    if legacy:
        return {"voices": [voice["name"] for voice in listed]}
    return {"voices": listed, "uploaded_voices": [_uploaded(name, voice) for name, voice in saved]}


@router.get("/voices/{name}")
async def voice(name: str, gate: Gate, key: Synth) -> dict[str, Any]:
    """One saved voice."""
    async with gate.keeper.using("voices"):
        stored = await gate.names.stored(name, key.owner)
        _check_visible(name, stored, key)
        return _uploaded(name, await gate.tts.voices.describe(stored))


@router.post("/voices")
async def save_voice(
    gate: Gate,
    key: VoiceOwner,
    name: str = Form(),
    consent: str = Form("", max_length=4096),
    ref_text: str = Form("", max_length=4096),
    speaker_description: str = Form("", max_length=4096),
    audio_sample: UploadFile | None = None,
    speaker_embedding: str | None = Form(None),
) -> dict[str, Any]:
    """Keep a voice under a name: a recording's, in context if its transcript is given, or an embedding.

    A voice of the same name is replaced. What was heard in the recording is kept, not the recording.
    """
    async with gate.keeper.using("voices"):
        speakers = await gate.tts.voices.speakers()
    name = check_new_name(name, gate.names.aliases, [speaker.name for speaker in speakers])
    if (audio_sample is None) == (speaker_embedding is None):
        raise InvalidInput("give audio_sample or speaker_embedding, one of them", param="audio_sample")
    heard: ClonedVoice | VoicePrompt
    if audio_sample is not None:
        heard, facts = await _recorded(audio_sample, ref_text)
    else:
        heard = _embedded(speaker_embedding or "")
        facts = {"embedding_source": "direct", "embedding_dim": len(heard.speaker_embedding)}
    metadata = {"consent": consent, "speaker_description": speaker_description, **facts}
    await gate.narrator.save(name, heard, key, metadata)
    saved = await gate.tts.voices.describe(stored_name(key.owner, name))
    return {
        "object": "audio.voice",
        "id": name,
        "name": name,
        "created_at": _epoch_s(saved.created_at),
        "success": True,
        "voice": _uploaded(name, saved),
    }


@router.delete("/voices/{name}")
async def delete_voice(name: str, gate: Gate, key: VoiceOwner) -> dict[str, Any]:
    """Forget a voice of this key for good, or a prompt of the original API, by the name `prompt-<its id>`."""
    stored = stored_name(key.owner, name)
    async with gate.keeper.using("voices"):
        await gate.tts.voices.delete(stored)
    return {"success": True, "message": f"Voice {name!r} was deleted", "id": name, "deleted": True}


async def _saved(gate: Gateway, key: Key) -> list[tuple[str, SavedVoice]]:
    """The voices a key may speak with, by the name that it knows them under; its own go before nobody's."""
    by_name: dict[str, SavedVoice] = {}
    for voice in await gate.tts.voices.list():
        name = visible_name(key.owner, voice.name)
        if name is not None and (name not in by_name or voice.name != name):
            by_name[name] = voice
    return sorted(by_name.items(), key=lambda named: named[0])


def _check_visible(name: str, stored: str, key: Key) -> None:
    if visible_name(key.owner, stored) is None:
        raise NotFound(f"there is no voice named {name!r}", param="name")


def _built_in(name: str, speaker: Speaker) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "kind": "built_in",
        "description": speaker.description,
        "languages": [speaker.native_language],
    }


def _aliases(gate: Gateway, speakers: list[Speaker], saved: set[str]) -> list[dict[str, Any]]:
    """OpenAI's names, those whose speaker this checkpoint has, or whose saved voices this key has."""
    by_name = {speaker.name.lower(): speaker for speaker in speakers}
    listed = []
    for alias, meant in gate.names.aliases.items():
        if speaker := by_name.get(meant.lower()):
            listed.append(_built_in(alias, speaker) | {"kind": "alias"})
        elif (names := set(names_in(meant))) and names <= saved:
            listed.append({"id": alias, "name": alias, "kind": "alias"})
    return listed


# What is said of every uploaded voice, known or not: clients have a class for it.
_FACTS = {
    "consent": "",
    "speaker_description": "",
    "file_size": None,
    "mime_type": "",
    "embedding_source": "",
    "embedding_dim": None,
}


def _uploaded(name: str, voice: SavedVoice) -> dict[str, Any]:
    return {
        **_FACTS,
        # Before the rest: a voice saved past the gateway has metadata of any kind.
        **{key: value for key, value in voice.metadata.items() if value is not None},
        "name": name,
        "created_at": _epoch_s(voice.created_at),
        "model": voice.model,
        "x_vector_only": voice.x_vector_only,
        "ref_text": voice.ref_text,
    }


async def _recorded(file: UploadFile, ref_text: str) -> tuple[ClonedVoice, dict[str, Any]]:
    recording = await uploaded_recording(file, param="audio_sample")
    facts = {"embedding_source": "audio", "file_size": len(recording), "mime_type": file.content_type}
    transcript = ref_text.strip() or None
    return ClonedVoice(recording, transcript, x_vector_only=transcript is None), facts


def _embedded(text: str) -> VoicePrompt:
    """An embedding as a JSON list of numbers."""
    try:
        return embedded_voice(_EMBEDDING.validate_json(text))
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidInput(
            f"speaker_embedding is not a JSON list of numbers: {problem['msg']}", param="speaker_embedding"
        ) from None


def _epoch_s(iso: str) -> int:
    return int(datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp())
