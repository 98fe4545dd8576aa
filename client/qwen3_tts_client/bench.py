"""`qwen3-tts bench`: what callers feel while so many of them speak at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qwen3_tts_client.client import SpeechClient
from qwen3_tts_client.request import SpeechOptions
from qwen3_tts_client.voice import Voice


@dataclass(frozen=True)
class Load:
    """One load and how it went; a real-time factor is seconds waited per second of audio."""

    concurrency: int
    num_requests: int
    time_to_first_audio_p50_s: float
    time_to_first_audio_p95_s: float
    real_time_factor_p50: float
    real_time_factor_p95: float
    audio_s_per_s: float


@dataclass(frozen=True)
class _Sample:
    time_to_first_audio_s: float
    wall_s: float
    audio_s: float


def measure(
    client: SpeechClient,
    text: str,
    voice: Voice,
    *,
    language: str | None,
    concurrency: int,
    num_requests: int,
    options: SpeechOptions,
) -> Load:
    """A closed loop: `concurrency` callers, each sending its next request when its last one has ended."""

    def speak(_: int) -> _Sample:
        began_s = time.perf_counter()
        with client.stream(text, voice, language=language, **options) as speech:
            audio_s = speech.read().duration_s
        return _Sample(speech.time_to_first_audio_s or 0.0, time.perf_counter() - began_s, audio_s)

    began_s = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as callers:
        try:
            samples = list(callers.map(speak, range(num_requests)))
        except BaseException:
            callers.shutdown(wait=False, cancel_futures=True)
            raise
    return _summary(concurrency, samples, time.perf_counter() - began_s)


def _summary(concurrency: int, samples: list[_Sample], wall_s: float) -> Load:
    first_p50, first_p95 = np.percentile([sample.time_to_first_audio_s for sample in samples], [50, 95])
    rtf_p50, rtf_p95 = np.percentile([sample.wall_s / sample.audio_s for sample in samples], [50, 95])
    audio_s = sum(sample.audio_s for sample in samples)
    return Load(
        concurrency, len(samples), first_p50, first_p95, rtf_p50, rtf_p95, audio_s_per_s=audio_s / wall_s
    )
