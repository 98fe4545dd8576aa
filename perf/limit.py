"""How far the engine is from what the machine can do: weights to read and operations to make, per frame.

    make bench-limit

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open

from bench import Setting, requests_of
from checkpoints import SHAPES, build_endless
from claims import claims_section, plain
from codec import upstream_decoder
from contestants import OurEngine
from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.request import CODES_PER_FRAME
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

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
PREDICTOR_PASSES = 15  # one for each code that it draws; the first reads two positions at once
CODEC_CHUNK = 12  # frames that share one reading of the codec's weights in a long utterance
READ_BYTES = 1 << 30  # many times the caches
PRODUCT_SIZE = 2048  # of the square matrices whose product is timed
ROWS = (1, 4, 8, 16)  # of the small products
SMALL_PRODUCT = (4096, 1024)  # [out, in], the talker's widest
COLD_BYTES = 1 << 28  # of different weights, so that none is in a cache when it is read again
BATCHES = (1, 8)
FRAMES = {"tiny": 39, "small": 39, "published-0.6b": 7}

METHOD = """
The weights that a frame must read are counted from the checkpoint of shape {shape}: the talker once, the
code predictor's layers {passes} times, each of its heads once, in {dtype}; the codec, in float32, once for
a chunk of {chunk} frames. Operations are two for every weight used; the codec's are counted by torch over
upstream's decoder for one frame more. The memory's speed is the sum of {gib:g} GiB of float32, the
processor's that of a product of {size} × {size} matrices, on {threads} threads. Each is measured anew in
{rounds} rounds, in turns with the engine, which speaks {frames} frames; the highest speed of all rounds is
the limit. At a batch of N, a reading of the language models' weights serves N frames. The least time of a
frame is the larger of reading and computing for the language models, plus the same for the codec. The
talker's attention, embeddings and activations are left out, so that the limit is a little lower than
anything could be. Reached is that time as a share of the engine's, for the language models without the
prompt.
"""


@dataclass(frozen=True)
class Work:
    """Weights that a frame uses, by how often they are read.

    Args:
        language_weights: elements read for one frame, those that are read again counted again.
        codec_weights: elements of the decoder.
        codec_operations: of one frame.
    """

    language_weights: int
    codec_weights: int
    codec_operations: int

    @classmethod
    def of(cls, checkpoint: Path) -> Work:
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        decoder = upstream_decoder(checkpoint)
        longer, shorter = (codec_operations(decoder, frames) for frames in (13, 12))
        weights = sum(parameter.numel() for parameter in decoder.parameters())
        return cls(language_weights(sizes), weights, longer - shorter)


def language_weights(sizes: Mapping[str, Sequence[int]]) -> int:
    """Elements of weight matrices read for one frame, from the names and shapes of a checkpoint's tensors."""
    return sum(int(np.prod(shape)) * readings(name) for name, shape in sizes.items() if len(shape) == 2)


def readings(name: str) -> int:
    """How often a frame reads a matrix; of an embedding it reads a row."""
    if "embedding" in name or not name.startswith("talker.") or name.startswith("talker.text_projection."):
        return 0
    is_repeated = name.startswith(
        ("talker.code_predictor.model.layers.", "talker.code_predictor.small_to_mtp_projection.")
    )
    return PREDICTOR_PASSES if is_repeated else 1


@torch.inference_mode()
def codec_operations(decoder: torch.nn.Module, frames: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(1, CODES_PER_FRAME, frames, dtype=torch.int64))
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Speeds:
    """What the machine did in one round."""

    bytes_per_s: float
    operations_per_s: Mapping[str, float]  # by dtype

    @classmethod
    def measure(cls, memory: torch.Tensor, dtypes: Iterable[str]) -> Speeds:
        read_s = min(seconds(lambda: memory.sum()) for _ in range(3))
        operations = 2 * PRODUCT_SIZE**3
        per_s = {}
        for dtype in dtypes:
            matrix = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=getattr(torch, dtype))
            per_s[dtype] = operations / min(seconds(lambda m=matrix: m @ m) for _ in range(5))
        return cls(memory.nbytes / read_s, per_s)

    @classmethod
    def best(cls, of: Sequence[Speeds]) -> Speeds:
        dtypes = of[0].operations_per_s
        return cls(
            max(s.bytes_per_s for s in of), {d: max(s.operations_per_s[d] for s in of) for d in dtypes}
        )


@dataclass(frozen=True)
class Limit:
    """The least milliseconds per frame at a batch."""

    batch: int
    reading_ms: float  # the language models' weights
    computing_ms: float
    codec_ms: float

    @classmethod
    def of(cls, work: Work, speeds: Speeds, batch: int, weights: str, dtype: str) -> Limit:
        """Args: weights: the dtype they are read in; dtype: that they are multiplied in."""
        weight_bytes = work.language_weights * ITEM_BYTES[weights]
        codec_bytes = work.codec_weights * ITEM_BYTES["float32"] / CODEC_CHUNK
        return cls(
            batch,
            reading_ms=1000 * weight_bytes / batch / speeds.bytes_per_s,
            computing_ms=1000 * 2 * work.language_weights / speeds.operations_per_s[dtype],
            codec_ms=1000
            * max(
                codec_bytes / speeds.bytes_per_s, work.codec_operations / speeds.operations_per_s["float32"]
            ),
        )

    @property
    def language_models_ms(self) -> float:
        return max(self.reading_ms, self.computing_ms)

    @property
    def total_ms(self) -> float:
        return self.language_models_ms + self.codec_ms


@dataclass(frozen=True)
class Reached:
    """What the engine needed at a batch, milliseconds per frame, over the rounds."""

    limit: Limit
    language_models_ms: Spread
    codec_ms: Spread

    @property
    def share(self) -> Spread:
        """Of the limit, for the language models."""
        slow, fast = self.language_models_ms.high, self.language_models_ms.low
        least = self.limit.language_models_ms
        return Spread(least / self.language_models_ms.median, least / slow, least / fast)


def seconds(work: object) -> float:
    started_s = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - started_s


@torch.inference_mode()
def small_products(dtype: str) -> dict[str, dict[int, float]]:
    """GB/s of weights that products with few rows read, by kind and number of rows; the weights are cold."""
    out, width = SMALL_PRODUCT
    count = max(2, COLD_BYTES // (out * width * ITEM_BYTES[dtype]))
    weights = [torch.randn(out, width).to(getattr(torch, dtype)) for _ in range(count)]
    laid_out = [Linear(weight) for weight in weights]
    kinds = {
        "`F.linear`": [lambda x, w=weight: F.linear(x, w) for weight in weights],
        "the engine's `Linear`": laid_out,
    }
    speeds: dict[str, dict[int, float]] = {}
    for kind, products in kinds.items():
        speeds[kind] = {}
        for rows in ROWS:
            x = torch.ones(rows, width, dtype=getattr(torch, dtype))
            spent_s = min(seconds(lambda p=products, x=x: [product(x) for product in p]) for _ in range(3))
            speeds[kind][rows] = sum(weight.nbytes for weight in weights) / spent_s / 1e9
    return speeds


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    meter = MachineMeter()
    checkpoint = build_endless(options.shape)
    work = Work.of(checkpoint)
    settings = {"weights": "int8"} if options.int8 else {}
    engine = OurEngine(checkpoint, options.dtype, "cpu", **settings)
    memory = torch.ones(options.read_bytes // 4)
    speeds, spoken = [], {batch: [] for batch in BATCHES}
    for batch in BATCHES:
        engine.speak(requests_of(Setting(batch), 3))
    for i in range(options.rounds):
        progress(f"round {i + 1} of {options.rounds}")
        speeds.append(Speeds.measure(memory, dict.fromkeys(("float32", options.dtype))))
        for batch in BATCHES:
            spoken[batch].append(engine.speak(requests_of(Setting(batch), FRAMES[options.shape])))
    weights = "int8" if options.int8 else options.dtype
    reached = [
        Reached(
            Limit.of(work, Speeds.best(speeds), batch, weights, options.dtype),
            Spread.of(1000 * s.later_frames.wall_s / s.num_later_frames for s in rounds),
            Spread.of(1000 * s.codec.wall_s / s.num_frames for s in rounds),
        )
        for batch, rounds in spoken.items()
    ]
    products = small_products(options.dtype)
    write_up(work, speeds, reached, products, options, Provenance.of(meter)).publish(options.results)


# --- the report -------------------------------------------------------------------------------------------


def write_up(
    work: Work,
    speeds: Sequence[Speeds],
    reached: Sequence[Reached],
    products: Mapping[str, Mapping[int, float]],
    options: argparse.Namespace,
    provenance: Provenance,
) -> Report:
    weights = "int8" if options.int8 else options.dtype
    is_claimed = (options.shape, weights) == ("published-0.6b", "bfloat16")
    found = {"0.6b memory": reached[0].share} if is_claimed else {}
    return Report(
        title=f"The distance to the machine's limit: {options.shape}, {weights}",
        name=f"cpu-limit-{options.shape}-{weights}",
        method=METHOD.format(
            shape=options.shape,
            passes=PREDICTOR_PASSES,
            dtype=weights,
            chunk=CODEC_CHUNK,
            gib=options.read_bytes / 2**30,
            size=PRODUCT_SIZE,
            threads=options.threads,
            rounds=options.rounds,
            frames=FRAMES[options.shape],
        ),
        sections=[
            *filter(None, [claims_section(found)]),
            _machine_section(work, speeds, ITEM_BYTES[weights]),
            _reached_section(reached),
            _products_section(products, options.dtype),
        ],
        figures={
            "shape": options.shape,
            "weights": weights,
            "work": asdict(work),
            "speeds": [asdict(s) for s in speeds],
            "reached": [{**asdict(r), "share": asdict(r.share)} for r in reached],
            "weights_read_gb_per_s": products,
            "findings": plain(found),
        },
        provenance=provenance,
    )


def _machine_section(work: Work, speeds: Sequence[Speeds], item_bytes: int) -> str:
    rows = [
        ("memory, read", f"{Spread.of(s.bytes_per_s / 1e9 for s in speeds)} GB/s"),
        *(
            (f"product, {d}", f"{Spread.of(s.operations_per_s[d] / 1e9 for s in speeds)} GFLOP/s")
            for d in speeds[0].operations_per_s
        ),
        ("language models' weights per frame", f"{work.language_weights * item_bytes / 1e9:.3g} GB"),
        ("their operations", f"{2 * work.language_weights / 1e9:.3g} GFLOP"),
        ("codec's operations per frame", f"{work.codec_operations / 1e9:.3g} GFLOP"),
        ("codec's weights", f"{work.codec_weights * 4 / 1e9:.3g} GB"),
    ]
    return "## The machine and the work\n\n" + table(("", ""), rows)


def _reached_section(reached: Sequence[Reached]) -> str:
    header = (
        "batch",
        "reading, ms",
        "computing, ms",
        "least, language models",
        "engine",
        "reached",
        "least, codec",
        "engine",
        "least, total",
    )
    rows = [
        (
            r.limit.batch,
            f"{r.limit.reading_ms:.3g}",
            f"{r.limit.computing_ms:.3g}",
            f"{r.limit.language_models_ms:.3g}",
            r.language_models_ms,
            r.share,
            f"{r.limit.codec_ms:.3g}",
            r.codec_ms,
            f"{r.limit.total_ms:.3g}",
        )
        for r in reached
    ]
    return "## Milliseconds per frame\n\n" + table(header, rows)


def _products_section(products: Mapping[str, Mapping[int, float]], dtype: str) -> str:
    out, width = SMALL_PRODUCT
    header = ("rows", *map(str, ROWS))
    rows = [(kind, *(f"{speeds[n]:.3g}" for n in ROWS)) for kind, speeds in products.items()]
    return f"## GB/s of weights, one product of {width} → {out} in {dtype}\n\n{table(header, rows)}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/limit.py", description="Measure the engine against what the machine can do."
    )
    parser.add_argument("--shape", choices=SHAPES, default="published-0.6b", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--int8", action="store_true", help="the language models' weights in int8")
    parser.add_argument("--threads", type=int, default=num_available_cores())
    parser.add_argument("--rounds", type=at_least(1), default=5, help="default: %(default)s")
    parser.add_argument("--read-bytes", type=int, default=READ_BYTES, help="default: %(default)s")
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
