"""The codec alone: state kept between chunks against upstream's decoder with a window of frames before each.

    make bench-codec

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from checkpoints import SHAPES, build_endless
from claims import claims_section, plain
from contestants import Cost
from plots import line_plot
from qwen3_tts_engine.codec_stream import CodecStream
from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.model.checkpoint import Checkpoint
from qwen3_tts_engine.model.codec_decoder import CodecDecoder
from qwen3_tts_engine.request import CODES_PER_FRAME, FRAME_SAMPLES
from qwen3_tts_engine.upstream import import_qwen_tts
from report import (
    MachineMeter,
    Provenance,
    Report,
    Spread,
    add_results_option,
    at_least,
    progress,
    table,
)

CPU = torch.device("cpu")
CHUNKS = (1, 4, 8, 12)  # frames
WINDOWS = (25, 72)  # frames before a chunk
SPOKEN_BEFORE = 72  # frames: every window is full, and attention sees as far back as it ever does
MEASURED_CHUNKS = {1: 4, 4: 2, 8: 2, 12: 2}  # of each length, in a round
NUM_CODES = 2048
SEED = 0
ROUNDS = 3
PATIENCE_S = 120.0

STATEFUL = "stateful"
FIRST_CHUNK = "first chunk"

METHOD = """
The decoder of the codec at the dimensions of shape {shape}, random weights, float32, {threads} torch threads,
the same checkpoint in both. "Stateful" is the engine's `CodecStream`, which decodes a chunk's frames and
keeps what the next chunk needs; a window of 25 or 72 frames is upstream's decoder
(`Qwen3TTSTokenizerV2Decoder` of qwen-tts 0.1.1) over so many frames before the chunk and the chunk itself,
of whose samples those of the chunk are kept. An utterance has {before} frames behind it when measuring
begins, so that every window is full; then {chunks} chunks of 1, 4, 8 and 12 frames are decoded by everybody
in turn, in every other one of {rounds} rounds in the opposite order. Figures are milliseconds per new frame,
medians over the rounds with lowest and highest in parentheses; a factor is taken within a round. The largest
difference is between these samples and those of upstream's decode of all frames at once, of full scale. The
first chunk is one frame of an utterance that has nothing behind it.
"""


class Decoder(Protocol):
    """One way to decode a stream."""

    def begin(self, codes: NDArray[np.int64]) -> None:
        """Have these frames behind it, [n, 16]."""

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples of the next frames: [n, 16] -> [n · 1920]."""


class Stateful:
    """Ours."""

    def __init__(self, decoder: CodecDecoder) -> None:
        self._stream = CodecStream(decoder, 1, CPU)

    @torch.inference_mode()
    def begin(self, codes: NDArray[np.int64]) -> None:
        self._stream.reset(0)
        if len(codes):
            self._stream.decode({0: list(codes)})

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._stream.decode({0: list(codes)})[0]


class Window:
    """What who keeps no state does: decode some frames before the chunk once more, and drop their samples.

    Args:
        decoder: upstream's: codes [1, 16, n] -> samples [1, 1, n · 1920].
        frames: how many before each chunk, at most.
    """

    def __init__(self, decoder: Any, frames: int) -> None:
        self._decoder = decoder
        self._frames = frames
        self._past = np.zeros((0, CODES_PER_FRAME), np.int64)

    def begin(self, codes: NDArray[np.int64]) -> None:
        self._past = codes

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        context = self._past[max(0, len(self._past) - self._frames) :]
        self._past = np.concatenate([self._past, codes])
        samples = at_once(self._decoder, np.concatenate([context, codes]))
        return samples[len(context) * FRAME_SAMPLES :]


@torch.inference_mode()
def at_once(decoder: Any, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Upstream's decode of frames [n, 16] that nothing comes before: [n · 1920]."""
    samples: NDArray[np.float32] = decoder(torch.from_numpy(codes).T[None])[0, 0].numpy()
    return samples


@dataclass(frozen=True)
class Entry:
    who: str
    chunk: int  # frames; 0 is the first chunk, of one frame


@dataclass(frozen=True)
class Decoded:
    """Some chunks of one stream."""

    cost: Cost
    frames: int
    largest_difference: float

    @property
    def ms_per_frame(self) -> float:
        return 1000 * self.cost.wall_s / self.frames

    @property
    def cpu_ms_per_frame(self) -> float:
        return 1000 * self.cost.cpu_s / self.frames


Round = Mapping[Entry, Decoded]


@dataclass(frozen=True)
class Result:
    rounds: Sequence[Round]

    def cost(self, entry: Entry) -> Spread:
        return Spread.of(decoded[entry].ms_per_frame for decoded in self.rounds)

    def cpu_cost(self, entry: Entry) -> Spread:
        return Spread.of(decoded[entry].cpu_ms_per_frame for decoded in self.rounds)

    def factor(self, entry: Entry, reference: Entry) -> Spread:
        """How many times as expensive as the reference."""
        return Spread.of(
            decoded[entry].ms_per_frame / decoded[reference].ms_per_frame for decoded in self.rounds
        )

    def largest_difference(self, entry: Entry) -> float:
        return max(decoded[entry].largest_difference for decoded in self.rounds)

    def figures(self) -> list[dict[str, object]]:
        return [
            {
                **asdict(entry),
                "ms_per_frame": asdict(self.cost(entry)),
                "cpu_ms_per_frame": asdict(self.cpu_cost(entry)),
                "times_stateful": asdict(self.factor(entry, Entry(STATEFUL, entry.chunk))),
                "largest_difference": self.largest_difference(entry),
            }
            for entry in self.rounds[0]
        ]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    meter = MachineMeter()
    checkpoint = build_endless(options.shape)
    theirs = upstream_decoder(checkpoint)
    decoders: dict[str, Decoder] = {STATEFUL: Stateful(our_decoder(checkpoint))}
    decoders |= {window_name(frames): Window(theirs, frames) for frames in WINDOWS}
    codes = np.random.default_rng(SEED).integers(0, NUM_CODES, (num_frames(), CODES_PER_FRAME))
    whole = at_once(theirs, codes)
    result = Result(list(play(decoders, codes, whole, options)))
    write_up(result, options, Provenance.of(meter)).publish(options.results)


def our_decoder(directory: Path) -> CodecDecoder:
    checkpoint = Checkpoint(directory)
    return CodecDecoder(checkpoint.codec_weights(torch.float32, CPU), checkpoint.codec_config)


def upstream_decoder(directory: Path) -> Any:
    import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Model

    tokenizer = Qwen3TTSTokenizerV2Model.from_pretrained(
        str(directory / "speech_tokenizer"), dtype=torch.float32
    )
    return tokenizer.eval().decoder


def window_name(frames: int) -> str:
    return f"window of {frames}"


def num_frames() -> int:
    return SPOKEN_BEFORE + max(chunk * count for chunk, count in MEASURED_CHUNKS.items())


def play(
    decoders: Mapping[str, Decoder],
    codes: NDArray[np.int64],
    whole: NDArray[np.float32],
    options: argparse.Namespace,
) -> Iterator[Round]:
    entries = [Entry(who, chunk) for chunk in (0, *CHUNKS) for who in decoders]
    for entry in entries:  # first times cost more
        decode(decoders[entry.who], entry.chunk, 1, codes, whole)
    began_s = time.monotonic()
    for i in range(options.rounds or ROUNDS):
        if i and time.monotonic() - began_s > (math.inf if options.rounds else PATIENCE_S):
            progress(f"out of patience after {i} rounds")
            return
        decoded = {}
        for entry in entries[:: -1 if i % 2 else 1]:
            progress(f"round {i + 1}, {entry.who}, {chunk_name(entry.chunk)}")
            gc.collect()
            count = MEASURED_CHUNKS.get(entry.chunk, 1)
            decoded[entry] = decode(decoders[entry.who], entry.chunk, count, codes, whole)
        yield {entry: decoded[entry] for entry in entries}


def decode(
    decoder: Decoder, chunk: int, count: int, codes: NDArray[np.int64], whole: NDArray[np.float32]
) -> Decoded:
    """`count` chunks of that many frames; a chunk of 0 is the utterance's first, of one frame."""
    start = SPOKEN_BEFORE if chunk else 0
    length = chunk or 1
    end = start + length * count
    decoder.begin(codes[:start])
    before = Cost.now()
    pieces = [decoder.decode(codes[i : i + length]) for i in range(start, end, length)]
    cost = Cost.now() - before
    difference = np.abs(np.concatenate(pieces) - whole[start * FRAME_SAMPLES : end * FRAME_SAMPLES]).max()
    return Decoded(cost, end - start, float(difference))


# --- the report -------------------------------------------------------------------------------------------


def findings(result: Result) -> dict[str, Spread]:
    of_8 = Entry(STATEFUL, 8)
    differences = [result.largest_difference(Entry(STATEFUL, chunk)) for chunk in (0, *CHUNKS)]
    return {
        **{
            f"codec, {frames} frames": result.factor(Entry(window_name(frames), 8), of_8)
            for frames in WINDOWS
        },
        "codec, first chunk": result.factor(Entry(STATEFUL, 0), Entry(STATEFUL, 1)),
        "codec, exact": Spread.of([max(differences)]),
    }


def write_up(result: Result, options: argparse.Namespace, provenance: Provenance) -> Report:
    # The published codec alone is what the claims are about.
    found = findings(result) if options.shape == "published-0.6b" else {}
    costs = {
        who: {chunk: result.cost(Entry(who, chunk)) for chunk in CHUNKS} for who in (STATEFUL, *windows())
    }
    return Report(
        title=f"The codec alone, streaming: {options.shape}",
        name=f"cpu-codec-{options.shape}",
        method=METHOD.format(
            shape=options.shape,
            threads=options.threads,
            before=SPOKEN_BEFORE,
            chunks=", ".join(str(MEASURED_CHUNKS[chunk]) for chunk in CHUNKS),
            rounds=len(result.rounds),
        ),
        sections=[*filter(None, [claims_section(found)]), costs_section(result), exactness_section(result)],
        figures={
            "shape": options.shape,
            "threads": options.threads,
            "rounds": len(result.rounds),
            "findings": plain(found),
            "chunks": result.figures(),
        },
        provenance=provenance,
        plots={"Cost per frame": line_plot(costs, "frames in a chunk", "ms per frame", is_logarithmic=True)},
    )


def windows() -> list[str]:
    return [window_name(frames) for frames in WINDOWS]


def chunk_name(chunk: int) -> str:
    return f"chunks of {chunk}" if chunk else FIRST_CHUNK


def costs_section(result: Result) -> str:
    header = ["ms per frame", STATEFUL, "its CPU time"]
    for window in windows():
        header += [window, "factor"]
    rows = []
    for chunk in (0, *CHUNKS):
        ours = Entry(STATEFUL, chunk)
        row: list[object] = [chunk_name(chunk), result.cost(ours), result.cpu_cost(ours)]
        for window in windows():
            row += [result.cost(Entry(window, chunk)), result.factor(Entry(window, chunk), ours)]
        rows.append(row)
    return f"## Cost per frame\n\n{table(header, rows)}"


def exactness_section(result: Result) -> str:
    header = ["largest difference", STATEFUL, *windows()]
    rows = [
        [
            chunk_name(chunk),
            *(f"{result.largest_difference(Entry(who, chunk)):.1e}" for who in (STATEFUL, *windows())),
        ]
        for chunk in (0, *CHUNKS)
    ]
    return f"## Equality to the decode of all frames at once\n\n{table(header, rows)}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/codec.py", description="Measure the streaming codec against windows of frames."
    )
    parser.add_argument("--shape", choices=SHAPES, default="published-0.6b", help="default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=num_available_cores(), help="torch's (default: the cores there are)"
    )
    parser.add_argument(
        "--rounds", type=at_least(1), help=f"however long they take (default: {ROUNDS}, while time lasts)"
    )
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
