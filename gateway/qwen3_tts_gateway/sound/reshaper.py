"""The engine's samples at another speed or sample rate, through FFmpeg's filters."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

from qwen3_tts_client.audio import Samples

# Samples per second, as the engine makes them.
SPEECH_RATE = 24_000

# `atempo` skips samples above 2 instead of blending them, and does not go below 0.5.
MAX_TEMPO_STEP = 2.0


def tempo_steps(speed: float) -> list[float]:
    """The speed as equal factors, each within what one `atempo` does well; none for 1."""
    num_steps = math.ceil(abs(math.log(speed, MAX_TEMPO_STEP)))
    return [math.pow(speed, 1 / num_steps) for _ in range(num_steps)]


def audio_frame(samples: npt.NDArray[np.generic], sample_format: str, sample_rate: int) -> av.AudioFrame:
    """Mono samples as FFmpeg takes them."""
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format=sample_format, layout="mono")
    frame.sample_rate = sample_rate
    frame.time_base = Fraction(1, sample_rate)
    return frame


class Reshaper:
    """Time-stretching (`atempo`) and resampling (swr), chunk by chunk.

    Resampling keeps up to 2 ms back, and no sample depends on where chunks end. Stretching keeps back one or
    two chunks of 80 ms for each of its steps: the second chunk brings the first sound, beyond 0.5 to 2 the
    third or fourth. It may drop 20 ms at the end, and overlap waves elsewhere if chunks end elsewhere.
    """

    def __init__(self, speed: float, sample_rate: int) -> None:
        self._graph = _graph(speed, sample_rate)

    def push(self, samples: Samples) -> Samples:
        """What can be heard of it, and of what was kept back."""
        self._graph.push(audio_frame(samples, "flt", SPEECH_RATE))
        return self._pull()

    def flush(self) -> Samples:
        """The rest; nothing can be pushed afterwards."""
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> Samples:
        chunks = [np.empty(0, np.float32)]
        while True:
            try:
                chunks.append(self._graph.pull().to_ndarray()[0])
            except (BlockingIOError, EOFError):  # wants more; has no more
                return np.concatenate(chunks)


def _graph(speed: float, sample_rate: int) -> Graph:
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=SPEECH_RATE, format="flt", layout="mono", time_base=Fraction(1, SPEECH_RATE)
    )
    stretches = [graph.add("atempo", f"{step:.6f}") for step in tempo_steps(speed)]
    # Where the rate differs, FFmpeg puts `aresample` in front of this.
    shape = graph.add("aformat", sample_fmts="flt", sample_rates=str(sample_rate), channel_layouts="mono")
    graph.link_nodes(source, *stretches, shape, graph.add("abuffersink")).configure()
    return graph
