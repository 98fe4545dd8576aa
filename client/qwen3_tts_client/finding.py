"""Which voice a caller means: asked of the server where need be, and remembered."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import InferResult

from qwen3_tts_client.conversation import Conversation, Question
from qwen3_tts_client.errors import SpeechError, is_unserved
from qwen3_tts_client.request import voice_request
from qwen3_tts_client.tensors import read_output
from qwen3_tts_client.voice import BuiltIn, ClonedVoice, FoundVoice, Saved, Voice, VoicePrompt
from qwen3_tts_client.voices import listing_speakers

MOST_PROMPTS = 64
"""Voice prompts a client remembers; one takes about 1 KB for each second of its recording, and 8 KB."""


@dataclass(frozen=True)
class VoiceKey:
    """What a voice prompt is made from, all of it: recordings that begin alike are not alike."""

    recording_sha256: str
    transcript: str | None
    x_vector_only: bool


class VoiceFinder:
    """Remembers the built-in speakers' names and the prompts of recordings; threads may share it."""

    def __init__(self, most_prompts: int = MOST_PROMPTS) -> None:
        self._most_prompts = most_prompts
        self._prompts: OrderedDict[VoiceKey, VoicePrompt] = OrderedDict()  # the least recently used first
        self._speakers: frozenset[str] | None = None
        self._lock = threading.Lock()

    def finding(self, voice: Voice | FoundVoice, timeout_s: float | None = None) -> Conversation[FoundVoice]:
        """Find out what there is to know about a voice before it can speak."""
        if isinstance(voice, str):
            is_built_in = yield from self._recognising(voice, timeout_s)
            return BuiltIn(voice) if is_built_in else Saved(voice)
        if isinstance(voice, ClonedVoice):
            return (yield from self.prompting(voice, timeout_s))
        return voice

    def finding_all(
        self, voices: Iterable[Voice], timeout_s: float | None = None
    ) -> Conversation[dict[Voice, FoundVoice]]:
        """Find each voice once, however many utterances of a batch speak with it."""
        found: dict[Voice, FoundVoice] = {}
        for voice in voices:
            if voice not in found:
                found[voice] = yield from self.finding(voice, timeout_s)
        return found

    def prompting(self, voice: ClonedVoice, timeout_s: float | None = None) -> Conversation[VoicePrompt]:
        """The prompt of a recording, made by `create_voice` unless it is remembered."""
        recording = voice.read()
        key = VoiceKey(hashlib.sha256(recording).hexdigest(), voice.transcript, voice.x_vector_only)
        prompt = self._recall(key)
        if prompt is None:
            request = voice_request(
                "create_voice",
                ref_audio=recording,
                ref_text=voice.transcript,
                x_vector_only=voice.x_vector_only,
            )
            answer = yield Question("ModelInfer", request, timeout_s)
            prompt = read_prompt(InferResult(answer), voice.transcript)
            self._remember(key, prompt)
        return prompt

    def forget(self) -> None:
        """Ask again: another checkpoint has other speakers, and hears recordings with other ears."""
        with self._lock:
            self._speakers = None
            self._prompts.clear()

    def _recognising(self, name: str, timeout_s: float | None) -> Conversation[bool]:
        """Whether a name is a built-in speaker's; where nobody keeps saved voices, every name is."""
        speakers = self._speakers
        if speakers is None:
            try:
                listed = yield from listing_speakers(timeout_s)
            except SpeechError as error:
                if is_unserved(error):  # not remembered: it may be loaded any moment
                    return True
                raise
            # An empty name means the first speaker, as an empty tensor does.
            self._speakers = speakers = frozenset(["", *(speaker.name.lower() for speaker in listed)])
        return name.lower() in speakers

    def _recall(self, key: VoiceKey) -> VoicePrompt | None:
        with self._lock:
            if key in self._prompts:
                self._prompts.move_to_end(key)
            return self._prompts.get(key)

    def _remember(self, key: VoiceKey, prompt: VoicePrompt) -> None:
        with self._lock:
            self._prompts[key] = prompt
            if len(self._prompts) > self._most_prompts:
                self._prompts.popitem(last=False)


def read_prompt(result: InferResult, transcript: str | None) -> VoicePrompt:
    speaker_embedding = read_output(result, "speaker_embedding")[0].astype(np.float32)
    ref_codes = read_output(result, "ref_codes")[0].astype(np.int32)
    return VoicePrompt(speaker_embedding, ref_codes, transcript)
