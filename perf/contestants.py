"""Our engine and upstream behind one verb: speak these requests, and say what it took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.device import Graphs
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import SpeechError
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.sequence import Chunk
from qwen3_tts_engine.upstream import import_qwen_tts

TASK = "custom_voice"


@dataclass(frozen=True)
class Cost:
    """Time on the wall, and time of all this process's threads on the cores."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    @classmethod
    def now(cls) -> Cost:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s)


@dataclass(frozen=True)
class Utterance:
    """codes [frames, 16], samples [frames · 1920], and when the first of them could be heard."""

    codes: NDArray[np.int64]
    samples: NDArray[np.float32]
    first_audio_s: float


@dataclass(frozen=True)
class Spoken:
    """Utterances that were spoken in one go.

    Args:
        total: from the requests to the last sample.
        codec: the part of it in which codes became samples; the rest is the language models'.
        later_frames: the language models' part from the end of the first frame to the end of the last.
    """

    utterances: Sequence[Utterance]
    total: Cost
    codec: Cost
    later_frames: Cost

    @property
    def language_models(self) -> Cost:
        return self.total - self.codec

    @property
    def num_frames(self) -> int:
        return sum(len(u.codes) for u in self.utterances)

    @property
    def num_later_frames(self) -> int:
        return self.num_frames - len(self.utterances)

    def then(self, other: Spoken) -> Spoken:
        """Both, one after the other."""
        waited_s = self.total.wall_s
        late = [Utterance(u.codes, u.samples, u.first_audio_s + waited_s) for u in other.utterances]
        return Spoken(
            [*self.utterances, *late],
            self.total + other.total,
            self.codec + other.codec,
            self.later_frames + other.later_frames,
        )


class Contestant(Protocol):
    def speak(self, requests: Sequence[SpeechRequest]) -> Spoken:
        """Speak them all at once, each to its max_frames."""


class Stopwatch:
    """Runs from its making; keeps the codec's time apart and notes when each frame's codes were there.

    Attributes:
        frame_ends: the language models' cost up to the end of every frame.
    """

    def __init__(self) -> None:
        self._start = Cost.now()
        self._codec = Cost()
        self.frame_ends: list[Cost] = []

    @contextmanager
    def codec(self) -> Iterator[None]:
        start = Cost.now()
        yield
        self._codec += Cost.now() - start

    def end_frame(self) -> None:
        self.frame_ends.append(self._language_models())

    def elapsed_s(self) -> float:
        return self._total().wall_s

    def stop(self, utterances: Sequence[Utterance]) -> Spoken:
        later = self.frame_ends[-1] - self.frame_ends[0]
        return Spoken(utterances, self._total(), self._codec, later)

    def _total(self) -> Cost:
        return Cost.now() - self._start

    def _language_models(self) -> Cost:
        return self._total() - self._codec


@dataclass
class Listener:
    """Hears one utterance of the engine."""

    stopwatch: Stopwatch
    cancelled: bool = False
    is_live: bool = True
    first_audio_s: float = 0.0
    codes: list[NDArray[np.int64]] = field(default_factory=list)
    chunks: list[NDArray[np.float32]] = field(default_factory=list)

    def write(self, chunk: Chunk) -> None:
        if not self.chunks:
            self.first_audio_s = self.stopwatch.elapsed_s()
        self.chunks.append(chunk.samples)

    def close(self, error: SpeechError | None = None) -> None:
        if error is not None:
            raise error

    @property
    def utterance(self) -> Utterance:
        return Utterance(np.stack(self.codes), np.concatenate(self.chunks), self.first_audio_s)


class OurEngine:
    """The engine as the server configures it, stepped by hand.

    Args:
        graphs: who records steps; None: the device itself, if it can.
        settings: more of its configuration, such as `weights="int8"`.
    """

    def __init__(
        self, checkpoint: Path, dtype: str, device: str, graphs: Graphs | None = None, **settings: Any
    ) -> None:
        config = EngineConfig(checkpoint=str(checkpoint), dtype=dtype, device=device, **settings)
        self._engine = Engine.load(config, TASK, base=checkpoint.parent, graphs=graphs)
        self._stopwatch = Stopwatch()
        self._decode = self._engine.codec.decode
        self._engine.codec.decode = self._timed_decode  # type: ignore[method-assign]

    def speak(self, requests: Sequence[SpeechRequest]) -> Spoken:
        return self.speak_arriving({0: requests})[0]

    def speak_arriving(self, requests: Mapping[int, Sequence[SpeechRequest]]) -> tuple[Spoken, list[Cost]]:
        """Requests by the step they come at -> what was spoken, and the language models' cost of each."""
        self._stopwatch = Stopwatch()
        listeners = []
        for step in itertools.count():
            listeners += [self._submit(request) for request in requests.get(step, ())]
            if self._engine.is_idle:
                break
            self._engine.step()
            self._stopwatch.end_frame()
        ends = [Cost(), *self._stopwatch.frame_ends]
        costs = [end - start for start, end in itertools.pairwise(ends)]
        return self._stopwatch.stop([listener.utterance for listener in listeners]), costs

    def warm_up(self) -> None:
        """What a server does before its first caller: the threads it computes on are chosen here, too."""
        self._engine.warm_up()

    def _submit(self, request: SpeechRequest) -> Listener:
        listener = Listener(self._stopwatch)
        self._engine.submit(self._engine.prepare(request, listener))
        return listener

    def _timed_decode(self, chunks: Mapping[int, list[NDArray[np.int64]]]) -> dict[int, NDArray[np.float32]]:
        """The one place that sees every frame of every slot, still as codes."""
        for slot, frames in chunks.items():
            listener = self._engine.scheduler.running[slot].sink
            if isinstance(listener, Listener):  # nobody listens to a warm-up
                listener.codes.extend(frames)
        with self._stopwatch.codec():
            return self._decode(chunks)


class Upstream:
    """`qwen_tts` with the same weights; several requests become one static batch.

    It runs until its longest row has ended. What the others say meanwhile nobody asked for: they are cut
    where their end would be, before the codec sees them, as upstream itself cuts a row that ended by itself.
    """

    def __init__(self, checkpoint: Path, dtype: str, device: str) -> None:
        qwen_tts = import_qwen_tts()
        from transformers.utils import logging

        logging.set_verbosity_error()  # it announces the padding token in every call
        dtype_and_device = {"dtype": getattr(torch, dtype), "device_map": device}
        self._tts = qwen_tts.Qwen3TTSModel.from_pretrained(str(checkpoint), **dtype_and_device)
        self._stopwatch = Stopwatch()
        self._codes: list[torch.Tensor] = []
        self._lengths: list[int] = []
        self._decode = self._tts.model.speech_tokenizer.decode
        self._tts.model.speech_tokenizer.decode = self._timed_decode
        self._tts.model.talker.register_forward_hook(self._after_talker)

    def speak(self, requests: Sequence[SpeechRequest]) -> Spoken:
        self._stopwatch = Stopwatch()
        assert requests[0].seed is not None
        self._lengths = [r.max_frames for r in requests if r.max_frames is not None]
        torch.manual_seed(requests[0].seed)  # the one generator there is, for all rows
        waveforms, _ = self._tts.generate_custom_voice(
            text=[r.text for r in requests],
            speaker=[r.speaker for r in requests],
            language=[r.language for r in requests],
            do_sample=requests[0].talker.do_sample,
            subtalker_dosample=requests[0].subtalker.do_sample,
            max_new_tokens=max(self._lengths) + 1,  # the last token never becomes a frame
        )
        heard_s = self._stopwatch.elapsed_s()
        codes = [c.cpu().numpy() for c in self._codes]
        return self._stopwatch.stop(
            [Utterance(c, samples, heard_s) for c, samples in zip(codes, waveforms, strict=True)]
        )

    def _after_talker(self, talker: object, inputs: object, output: Any) -> None:
        """A pass runs the code predictor first, for the frame before; the pass over the prompt has none."""
        if output.hidden_states[-1] is not None:  # the frame's codes
            self._stopwatch.end_frame()

    def _timed_decode(self, items: list[dict[str, torch.Tensor]]) -> tuple[list[NDArray[np.float32]], int]:
        self._codes = [
            item["audio_codes"][:length] for item, length in zip(items, self._lengths, strict=True)
        ]
        with self._stopwatch.codec():
            return self._decode([{"audio_codes": codes} for codes in self._codes])
