"""What so many streams need, in replicas, gateways and bytes: the arithmetic of docs/scaling.md.

python perf/capacity.py                    # the tables of docs/scaling.md
python perf/capacity.py --streams 2500 --format mp3
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from report import RESULTS, table

DECADES = (1, 10, 100, 1_000, 10_000)
HEADROOM = 0.7  # of a replica or a core: where the autoscaler adds another one
UTTERANCE_S = 10.0
SLOTS = 16

TRITON_BYTES_PER_S = 4 * 24_000  # float32, from Triton to the gateway
FORMAT_BYTES_PER_S = {"pcm": 2 * 24_000, "mp3": 128_000 // 8}  # from the gateway to the caller
# Of a request whose key has all three limits: 7 for requests, 7 for characters, 8 for streams.
REDIS_COMMANDS = 22
REDIS_COMMANDS_PER_VOICE = 4  # MULTI, two HGET, EXEC, whenever a saved voice is spoken with

# Table 2 of the Qwen3-TTS technical report (arXiv 2601.15621): six callers of the 1.7B model at a
# real-time factor of 0.463, on an internal vLLM engine and a device that it does not name. Not this engine's.
PUBLISHED_AUDIO_S_PER_S = 6 / 0.463


@dataclass(frozen=True)
class Source:
    """What one replica speaks.

    Args:
        audio_s_per_s: seconds of audio per second, all slots together.
        slots: utterances at once.
        origin: where the figure is from.
    """

    name: str
    audio_s_per_s: float
    slots: int
    origin: str

    @property
    def streams(self) -> float:
        """Listeners that one replica keeps supplied in real time, with headroom."""
        return min(HEADROOM * self.slots, HEADROOM * self.audio_s_per_s)


@dataclass(frozen=True)
class Gateway:
    """CPU of a gateway for each second of audio, by format."""

    cpu_s: dict[str, float]

    def cores(self, streams: int, sound: str) -> float:
        return streams * self.cpu_s[sound] / HEADROOM


@dataclass(frozen=True)
class Need:
    """Of so many streams that are heard in real time, all at once."""

    streams: int
    replicas: int
    gateway_cores: float
    redis_per_s: float
    internal_mbit_s: float
    external_mbit_s: float

    @classmethod
    def of(cls, streams: int, source: Source, gateway: Gateway, sound: str) -> Need:
        return cls(
            streams,
            math.ceil(streams / source.streams),
            gateway.cores(streams, sound),
            redis_per_s=streams / UTTERANCE_S * (REDIS_COMMANDS + REDIS_COMMANDS_PER_VOICE),
            internal_mbit_s=streams * TRITON_BYTES_PER_S * 8 / 1e6,
            external_mbit_s=streams * FORMAT_BYTES_PER_S[sound] * 8 / 1e6,
        )

    def row(self) -> tuple[object, ...]:
        return (
            f"{self.streams:,}",
            f"{self.replicas:,}",
            f"{self.gateway_cores:.2g}" if self.gateway_cores < 10 else f"{self.gateway_cores:.0f}",
            f"{self.redis_per_s:,.0f}",
            f"{self.internal_mbit_s:,.1f}",
            f"{self.external_mbit_s:,.1f}",
        )


COLUMNS = ("streams", "replicas", "gateway cores", "Redis commands/s", "Triton, Mbit/s", "callers, Mbit/s")


def newest(kind: str) -> tuple[str, Any]:
    """The latest result of a kind, such as `cpu-load-tiny`: its file and what is in it."""
    path = max(RESULTS.glob(f"*-{kind}.json"))
    return f"perf/results/{path.name}", json.loads(path.read_text())


def tiny_on_this_cpu() -> Source:
    file, result = newest("cpu-load-tiny")
    (full,) = [load for load in result["loads"] if load["callers"] == SLOTS]
    return Source("tiny, two CPU cores, measured", full["audio_s_per_s"]["median"], SLOTS, file)


def what_if() -> Source:
    return Source(
        "1.7B, one GPU, WHAT-IF, not measured", PUBLISHED_AUDIO_S_PER_S, SLOTS, "arXiv 2601.15621, table 2"
    )


def measured_gateway() -> Gateway:
    """What a gateway adds to the caller's own CPU."""
    _, result = newest("cpu-overheads-tiny")
    ways = {way["way"]: way for way in result["comparisons"]["The gateway against the client"]}
    return Gateway(
        {
            sound: ways[f"the gateway, `{sound}`"]["cpu_per_audio_more_ms"]["median"] / 1000
            for sound in FORMAT_BYTES_PER_S
        }
    )


def tables(streams: Sequence[int] = DECADES, sound: str = "pcm") -> Iterator[str]:
    gateway = measured_gateway()
    for source in (tiny_on_this_cpu(), what_if()):
        needs = [Need.of(number, source, gateway, sound) for number in streams]
        yield (
            f"{source.name}: {source.audio_s_per_s:.3g} s of audio per second and {source.slots} slots, so"
            f" {source.streams:.3g} streams a replica ({source.origin}); callers get {sound}:"
        )
        yield table(COLUMNS, [need.row() for need in needs])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python perf/capacity.py", description="What so many streams need, from measured figures."
    )
    parser.add_argument("--streams", nargs="+", type=int, default=list(DECADES))
    parser.add_argument("--format", choices=FORMAT_BYTES_PER_S, default="pcm")
    options = parser.parse_args()
    print("\n\n".join(tables(options.streams, options.format)))


if __name__ == "__main__":
    main()
