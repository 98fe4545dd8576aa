"""Does the GPU path hold on this GPU, and how fast is it? One command, a few minutes, local files only.

    python perf/gpu_check.py

Whoever has no GPU rehearses it: `--device cpu`. perf/README.md tells what is checked.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from checkpoints import build_endless
from contestants import Contestant, OurEngine, Spoken, Upstream
from qwen3_tts_engine.device import CaptureDriver, CudaCapture, Graphs, Rerun
from qwen3_tts_engine.request import Sampling, SpeechRequest
from report import MachineMeter, Provenance, Report, Spread, progress, table

NO_GPU = 2  # the exit status
TEXTS = ("Good morning.", "The quick brown fox jumps over the lazy dog.")
GREEDY = Sampling(do_sample=False)
SAMPLE_TOLERANCE = 1e-3  # of full scale

REPLAYED, EAGER, UPSTREAM = "replayed", "eager", "upstream, static batch"

METHOD = """
Random weights that never end an utterance; everybody speaks {frames} frames of 80 ms in the engine's {dtype}.
"Replayed" is the engine over CUDA graphs, "eager" the same steps of the same sizes called one by one,
"upstream" is `generate_custom_voice` of `qwen_tts` with all texts in one call. They speak in turns, every
other round backwards (rounds: {rounds}), each after a warm-up; medians, lowest and highest in parentheses.
Frames per second count all callers; first audio is the median over callers who start together, upstream's the
end of its call. Greedy codes are compared in float32, where they must be upstream's, and in bfloat16, where
kernels of other shapes round differently and a single other code changes the rest of the utterance.
"""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    shapes: Sequence[str]
    batches: Sequence[int]
    frames: int
    rounds: int
    dtype: str


ON_A_GPU = Scale(("tiny", "published-0.6b"), (1, 8, 32), frames=40, rounds=3, dtype="bfloat16")
REHEARSAL = Scale(("tiny",), (1, 2), frames=5, rounds=1, dtype="float32")


@dataclass(frozen=True)
class Agreement:
    """How many frames two contestants spoke alike, and how far the audio of utterances alike is apart."""

    what: str
    must_be_whole: bool
    frames: int
    equal_frames: int
    largest_sample_difference: float

    @property
    def is_broken(self) -> bool:
        alike = self.equal_frames == self.frames and self.largest_sample_difference <= SAMPLE_TOLERANCE
        return self.must_be_whole and not alike


@dataclass(frozen=True)
class Recording:
    """What having every step recorded took."""

    graphs: int
    seconds: float
    mebibytes: float


def main() -> int:
    options = parse_options()
    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        print(
            f"gpu_check needs a GPU that torch can use; this torch ({torch.__version__}) sees none."
            " Without one, rehearse: --device cpu",
            file=sys.stderr,
        )
        return NO_GPU
    meter = MachineMeter()
    scale = ON_A_GPU if on_gpu else REHEARSAL
    sections, figures, broken = [], [], False
    for shape in scale.shapes:
        check = Check(shape, build_endless(shape), options.device, scale)
        agreements = check.agreements()
        recording, times = check.race()
        broken = broken or any(agreement.is_broken for agreement in agreements)
        sections.append(section(shape, agreements, recording, times))
        figures.append(plain(shape, agreements, recording, times))
    report = Report(
        title=f"The GPU path: {', '.join(scale.shapes)}, {scale.dtype}",
        name="-".join(["gpu", "check", *scale.shapes]),
        method=METHOD.format(frames=scale.frames, dtype=scale.dtype, rounds=scale.rounds),
        sections=sections,
        figures={"dtype": scale.dtype, "device": options.device, "shapes": figures},
        provenance=Provenance.of(meter),
    )
    print(report.markdown())
    for path in report.write() if on_gpu else []:  # a rehearsal is no result
        progress(f"wrote {path}")
    return int(broken)


class Check:
    """One shape on one device."""

    def __init__(self, shape: str, checkpoint: Path, device: str, scale: Scale) -> None:
        self._shape = shape
        self._checkpoint = checkpoint
        self._device = device
        self._scale = scale

    def agreements(self) -> list[Agreement]:
        """Against upstream in both types, and replays against what they replay."""
        found = [self._with_upstream(dtype, must_be_whole=dtype == "float32") for dtype in self._dtypes]
        replayed, eager = (self._engine("float32", driver) for driver in (self._capture(), Rerun()))
        sampled = requests(self._scale.frames, len(TEXTS) * 2)
        what = "replayed against eager, float32, sampled"
        return [*found, compare(what, True, replayed.speak(sampled), eager.speak(sampled))]

    def race(self) -> tuple[Recording, dict[tuple[int, str], list[Spoken]]]:
        """What recording took, and everybody's runs by batch and name."""
        dtype = self._scale.dtype
        recording, replayed = self._recorded(dtype)
        contestants: dict[str, Contestant] = {
            REPLAYED: replayed,
            EAGER: self._engine(dtype, Rerun()),
            UPSTREAM: Upstream(self._checkpoint, dtype, self._device),
        }
        runs: dict[tuple[int, str], list[Spoken]] = {}
        for batch, who, spoken in self._rounds(contestants):
            runs.setdefault((batch, who), []).append(spoken)
        return recording, runs

    @property
    def _dtypes(self) -> tuple[str, ...]:
        return ("float32",) if self._device == "cpu" else ("float32", "bfloat16")

    def _with_upstream(self, dtype: str, must_be_whole: bool) -> Agreement:
        """Alone: in a batch upstream pads the shorter text."""
        progress(f"{self._shape}: greedy codes against upstream in {dtype}")
        ours, theirs = self._engine(dtype, self._capture()), Upstream(self._checkpoint, dtype, self._device)
        request = replace(requests(self._scale.frames, 1)[0], talker=GREEDY, subtalker=GREEDY)
        what = f"upstream, {dtype}, greedy"
        return compare(what, must_be_whole, ours.speak([request]), theirs.speak([request]))

    def _rounds(self, contestants: Mapping[str, Contestant]) -> Iterator[tuple[int, str, Spoken]]:
        entries = [(batch, who) for batch in self._scale.batches for who in contestants]
        for batch, who in entries:
            contestants[who].speak(requests(2, batch))
        for i in range(self._scale.rounds):
            for batch, who in entries[:: -1 if i % 2 else 1]:
                progress(f"{self._shape}, round {i + 1} of {self._scale.rounds}, batch {batch}: {who}")
                gc.collect()
                yield batch, who, contestants[who].speak(requests(self._scale.frames, batch))

    def _recorded(self, dtype: str) -> tuple[Recording, OurEngine]:
        progress(f"{self._shape}: recording in {dtype}")
        graphs = Graphs(self._capture())
        engine = self._load(dtype, graphs)
        before_s, before = time.perf_counter(), device_bytes(self._device)
        engine.warm_up()
        taken = device_bytes(self._device) - before
        return Recording(graphs.num_recorded, time.perf_counter() - before_s, taken / 2**20), engine

    def _engine(self, dtype: str, driver: CaptureDriver) -> OurEngine:
        engine = self._load(dtype, Graphs(driver))
        engine.warm_up()
        return engine

    def _load(self, dtype: str, graphs: Graphs) -> OurEngine:
        gc.collect()
        slots = max(*self._scale.batches, len(TEXTS) * 2)
        return OurEngine(self._checkpoint, dtype, self._device, graphs, slots=slots)

    def _capture(self) -> CaptureDriver:
        return Rerun() if self._device == "cpu" else CudaCapture(torch.device(self._device))


def requests(frames: int, batch: int) -> list[SpeechRequest]:
    return [
        SpeechRequest(TEXTS[i % len(TEXTS)], language="English", speaker="ryan", seed=i, max_frames=frames)
        for i in range(batch)
    ]


def compare(what: str, must_be_whole: bool, ours: Spoken, theirs: Spoken) -> Agreement:
    """Frames equal from the beginning on; samples where all codes are."""
    pairs = list(zip(ours.utterances, theirs.utterances, strict=True))
    equal = [int((o.codes == t.codes).all(1).cumprod().sum()) for o, t in pairs]
    differences = [
        float(np.abs(o.samples - t.samples).max())
        for n, (o, t) in zip(equal, pairs, strict=True)
        if n == len(t.codes)
    ]
    frames = sum(len(t.codes) for _, t in pairs)
    return Agreement(what, must_be_whole, frames, sum(equal), max(differences, default=0.0))


def device_bytes(device: str) -> int:
    """What torch holds of the device's memory, graphs' pools included."""
    return 0 if device == "cpu" else torch.cuda.memory_reserved(device)


def frames_per_second(runs: Sequence[Spoken]) -> Spread:
    return Spread.of(run.num_frames / run.total.wall_s for run in runs)


def first_audio_ms(runs: Sequence[Spoken]) -> Spread:
    return Spread.of(1000 * median(u.first_audio_s for u in run.utterances) for run in runs)


def section(
    shape: str,
    agreements: Sequence[Agreement],
    recording: Recording,
    runs: Mapping[tuple[int, str], Sequence[Spoken]],
) -> str:
    held = table(
        ("against", "equal frames", "largest sample difference", ""),
        [
            (
                a.what,
                f"{a.equal_frames} of {a.frames}",
                f"{a.largest_sample_difference:.1e}",
                "**broken**" if a.is_broken else "held" if a.must_be_whole else "reported",
            )
            for a in agreements
        ],
    )
    speed = table(
        ("batch", "who", "frames per second", "first audio, ms"),
        [(batch, who, frames_per_second(r), first_audio_ms(r)) for (batch, who), r in runs.items()],
    )
    recorded = (
        f"{recording.graphs} graphs recorded, with the warm-up in {recording.seconds:.1f} s and"
        f" {recording.mebibytes:.0f} MiB."
    )
    return "\n\n".join([f"## {shape}", held, recorded, speed])


def plain(
    shape: str,
    agreements: Sequence[Agreement],
    recording: Recording,
    runs: Mapping[tuple[int, str], Sequence[Spoken]],
) -> dict[str, object]:
    return {
        "shape": shape,
        "agreement": [asdict(agreement) for agreement in agreements],
        "recording": asdict(recording),
        "speed": [
            {
                "batch": batch,
                "who": who,
                "frames_per_second": asdict(frames_per_second(r)),
                "first_audio_ms": asdict(first_audio_ms(r)),
            }
            for (batch, who), r in runs.items()
        ],
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/gpu_check.py", description="Check and measure the GPU path on this machine's GPU."
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:N, or cpu for a rehearsal of the tiny shape"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
