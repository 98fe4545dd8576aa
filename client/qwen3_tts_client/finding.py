"""Which voice a caller means: asked of the server where need be, and remembered."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import InferResult

from qwen3_tts_client.conversation import Conversation, Question
from qwen3_tts_client.errors import SpeechError, is_unserved
from qwen3_tts_client.models import asking_checkpoint
from qwen3_tts_client.request import voice_request
from qwen3_tts_client.tensors import read_output
from qwen3_tts_client.voice import BuiltIn, ClonedVoice, FoundVoice, Saved, Voice, VoicePrompt
from qwen3_tts_client.voices import listing_speakers

MOST_PROMPTS = 64
"""Voice prompts a client remembers; one takes about 1 KB for each second of its recording, and 8 KB."""
PROMPT_LIFETIME_S = 600.0
SPEAKERS_LIFETIME_S = 60.0
"""How long what was found is good: a server may be restarted with other checkpoints while nobody asks."""

HEARD_BY = ("voice_encoder", "qwen3_tts_base")
"""What makes prompts and what speaks with them, each with a checkpoint of its own."""


@dataclass(frozen=True)
class VoiceKey:
    """What a voice prompt is made from, all of it: recordings that begin alike are not alike.

    Attributes:
        checkpoints: of `HEARD_BY`.
    """

    recording_sha256: str
    transcript: str | None
    x_vector_only: bool
    checkpoints: tuple[str, ...]


class VoiceFinder:
    """Remembers the built-in speakers' names and the prompts of recordings; threads may share it.

    Args:
        clock: in seconds.
    """

    def __init__(self, most_prompts: int = MOST_PROMPTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_prompts = most_prompts
        self._clock = clock
        self._prompts: OrderedDict[VoiceKey, _Prompt] = OrderedDict()  # the least recently used first
        self._speakers: _Speakers | None = None
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
        """The prompt of a recording, made by `create_voice` unless it is remembered for these checkpoints."""
        recording = voice.read()
        checkpoints = yield from _asking_checkpoints(timeout_s)
        digest = hashlib.sha256(recording).hexdigest()
        key = VoiceKey(digest, voice.transcript, voice.x_vector_only, checkpoints)
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
        """Ask again: another checkpoint has other speakers, and hears recordings with other ears.

        Whoever could not reach the server cannot know which ones it will come back with.
        """
        with self._lock:
            self._speakers = None
            self._prompts.clear()

    def _recognising(self, name: str, timeout_s: float | None) -> Conversation[bool]:
        """Whether a name is a built-in speaker's; where nobody keeps saved voices, every name is."""
        speakers = self._speakers
        if speakers is None or self._clock() >= speakers.good_until_s:
            try:
                listed = yield from listing_speakers(timeout_s)
            except SpeechError as error:
                if is_unserved(error):  # not remembered: it may be loaded any moment
                    return True
                raise
            # An empty name means the first speaker, as an empty tensor does.
            names = frozenset(["", *(speaker.name.lower() for speaker in listed)])
            self._speakers = speakers = _Speakers(names, self._clock() + SPEAKERS_LIFETIME_S)
        return name.lower() in speakers.names

    def _recall(self, key: VoiceKey) -> VoicePrompt | None:
        with self._lock:
            remembered = self._prompts.get(key)
            if remembered is None or self._clock() >= remembered.good_until_s:
                return None
            self._prompts.move_to_end(key)
            return remembered.prompt

    def _remember(self, key: VoiceKey, prompt: VoicePrompt) -> None:
        with self._lock:
            self._prompts[key] = _Prompt(prompt, self._clock() + PROMPT_LIFETIME_S)
            if len(self._prompts) > self._most_prompts:
                self._prompts.popitem(last=False)


@dataclass(frozen=True)
class _Prompt:
    prompt: VoicePrompt
    good_until_s: float


@dataclass(frozen=True)
class _Speakers:
    names: frozenset[str]  # in lower case
    good_until_s: float


def _asking_checkpoints(timeout_s: float | None) -> Conversation[tuple[str, ...]]:
    checkpoints = []
    for model in HEARD_BY:
        checkpoints.append((yield from asking_checkpoint(model, timeout_s)))
    return tuple(checkpoints)


def read_prompt(result: InferResult, transcript: str | None) -> VoicePrompt:
    speaker_embedding = read_output(result, "speaker_embedding")[0].astype(np.float32)
    ref_codes = read_output(result, "ref_codes")[0].astype(np.int32)
    return VoicePrompt(speaker_embedding, ref_codes, transcript)
