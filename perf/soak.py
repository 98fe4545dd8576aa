"""All that callers do, at full slots, for minutes or hours, and every sample that they hear checked.

    make soak MINUTES=30
    python perf/soak.py --minutes 3

It ends with status 1 when anything was wrong. perf/README.md tells how it judges; the report goes to
perf/results/.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import psutil

from crowd import DEEDS, LEAVE, NONSENSE, PATIENCE_S, SPEAK, TALKERS, Ledger, crowd, lines
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_engine.tiny import build_all
from report import ROOT, MachineMeter, Provenance, Report, add_results_option, device_kind, table
from serving import counted, counted_on, gateway_of, metrics_page, processes_of, serving

MODELS = (*TALKERS, "reference_audio", "voice_encoder", "create_voice", "voices")
SLOTS = 16  # of each model that speaks
MIN_FULL = 0.9  # of the looks at which there were callers for every slot of a model

# Spoken to, waiting in the model, waiting in Triton.
GAUGES = ("qwen3_tts_active_slots", "qwen3_tts_waiting_requests", "nv_inference_pending_request_count")

WARM_UP_SHARE = 0.2  # of the time: allocators and caches find their size
WARM_UP_S = 10.0  # before the first look: everybody has connected, every thread is there
LOOK_EVERY_S = 2.0
# What may be noise. A kilobyte lost by each of 20,000 utterances, or a descriptor by one in 1000, is more.
MAX_RISE_BYTES = 16 << 20
MAX_MORE = 16  # descriptors, and threads
MAX_MORE_SILENCE = 0.25  # of what there was at first, and as much again:
SILENCE_NOISE = 0.02  # seconds for each second of audio
MAX_TOLD = 20  # complaints of callers

METHOD = """
A tritonserver and a gateway started for this run serve the tiny checkpoints. First each of {lines}
utterances (every task, cloned voices with and without reference frames, a saved voice, a mix) is spoken
once alone. Then {callers} callers for each of the three models that speak and {gateway_callers} of the
gateway, in four processes, ask for them again and again, each with dice of its own: {speak} % are heard to
their end, {leave} % left after one to three chunks, {nonsense} % are requests that must be refused. What is
heard must be as many frames and samples as when it was spoken alone, each sample the same (through the
gateway, the same in 16 bits); what is left early, the beginning of that; and the client refuses chunks that
are missing, come twice or out of order. Every {look_s:g} s the memory of every process is read; a slope
(Theil and Sen's, after the first {warm_up:.0%} of the time) that amounts to over {max_mib:g} MiB is a leak.
Descriptors, threads and regions of shared memory are counted before and after, while nobody speaks; over
{more} descriptors or threads more are a leak, and so is one region. Silence is how long a listener who
plays what has come would wait for chunks; for each second of audio it must not be more in the last third of
the run than in the first by over a quarter and {silence_ms:g} ms. At {full:.0%} of the looks each model
must have callers for all its slots.
"""


# --- what must not grow -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """At a process, at a time."""

    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def at(cls, process: psutil.Process) -> Look:
        with process.oneshot():
            rss_bytes = process.memory_info().rss
            return cls(time.monotonic(), rss_bytes, process.num_fds(), process.num_threads())


class Watch:
    """Looks at every process now and then."""

    def __init__(self, processes: Mapping[str, psutil.Process], every_s: float) -> None:
        self._processes = processes
        self._every_s = every_s
        self.looks: dict[str, list[Look]] = {name: [] for name in processes}

    def look_until(self, is_over: threading.Event) -> None:
        while not is_over.wait(self._every_s):
            for name, look in self.look().items():
                self.looks[name].append(look)

    def look(self) -> dict[str, Look]:
        alive = {name: process for name, process in self._processes.items() if process.is_running()}
        return {name: Look.at(process) for name, process in alive.items()}


@dataclass(frozen=True)
class Growth:
    """Of one process.

    Args:
        rise_bytes: of its memory over the time after the warm-up, by the slope.
        bytes_per_hour: that slope.
        more_descriptors: while nobody speaks, after the run, than before it.
        more_threads: likewise.
    """

    process: str
    rss_bytes: int
    rise_bytes: float
    bytes_per_hour: float
    more_descriptors: int
    more_threads: int

    @classmethod
    def of(cls, process: str, looks: Sequence[Look], before: Look, after: Look) -> Growth:
        warm = looks[int(len(looks) * WARM_UP_SHARE) :]
        per_s = theil_sen([look.at_s for look in warm], [look.rss_bytes for look in warm])
        span_s = warm[-1].at_s - warm[0].at_s if warm else 0.0
        return cls(
            process,
            after.rss_bytes,
            rise_bytes=per_s * span_s,
            bytes_per_hour=per_s * 3600,
            more_descriptors=after.descriptors - before.descriptors,
            more_threads=after.threads - before.threads,
        )

    def complaints(self) -> Iterator[str]:
        if self.rise_bytes > MAX_RISE_BYTES:
            yield f"{self.process} has grown by {self.rise_bytes / 2**20:.0f} MiB"
        for what, more in (("descriptors", self.more_descriptors), ("threads", self.more_threads)):
            if more > MAX_MORE:
                yield f"{self.process} has {more} {what} more than before"


def theil_sen(times: Sequence[float], values: Sequence[float], most_points: int = 300) -> float:
    """The median slope between any two points, which single peaks do not move.

    Source: https://en.wikipedia.org/wiki/Theil%E2%80%93Sen_estimator
    """
    every = max(1, len(times) // most_points)
    points = list(zip(times[::every], values[::every], strict=True))
    slopes = [(v - u) / (t - s) for i, (s, u) in enumerate(points) for t, v in points[i + 1 :]]
    return statistics.median(slopes) if slopes else 0.0


def silence_by_third(
    silence: Sequence[tuple[float, float, float]], began_s: float, ended_s: float
) -> list[float]:
    """Seconds that listeners waited for each second of audio, after the warm-up."""
    bounds = np.linspace(began_s + WARM_UP_SHARE * (ended_s - began_s), ended_s, 4)
    found = []
    for low, high in pairwise(bounds):
        waits = [(wait_s, audio_s) for at_s, wait_s, audio_s in silence if low <= at_s < high]
        audio_s = sum(audio_s for _, audio_s in waits)
        found.append(sum(wait_s for wait_s, _ in waits) / audio_s if audio_s else 0.0)
    return found


# --- the run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filling:
    """How full a model was.

    Args:
        share_full: of the looks at which as many callers as it has slots were spoken to or waited for a slot.
        active_slots: those spoken to, on average.
    """

    share_full: float
    active_slots: float

    @classmethod
    def of(cls, looks: Sequence[tuple[float, float]]) -> Filling:
        """Looks are pairs of callers spoken to and callers who wait."""
        return cls(
            statistics.mean(active + waiting >= SLOTS for active, waiting in looks),
            statistics.mean(active for active, _ in looks),
        )


class Count:
    """Of those spoken to and those who wait, now and then, by model."""

    def __init__(self, server: Server, every_s: float) -> None:
        self._server = server
        self._every_s = every_s
        self.looks: dict[str, list[tuple[float, float]]] = {model: [] for model in TALKERS}

    def look_until(self, is_over: threading.Event) -> None:
        while not is_over.wait(self._every_s) and self._server.process.poll() is None:
            try:
                page = metrics_page(self._server)
            except OSError:  # the server hangs, which at_rest() tells
                is_over.set()
                return
            for model, looks in self.looks.items():
                active, *waiting = (counted_on(page, gauge, model) for gauge in GAUGES)
                looks.append((active, sum(waiting)))


@dataclass(frozen=True)
class Soak:
    """What came of it.

    Args:
        silence: seconds for each second of audio, by thirds of the time.
        filling: how full each model was.
    """

    minutes: float
    ledger: Ledger
    growth: Sequence[Growth]
    more_regions: int
    silence: Sequence[float]
    filling: Mapping[str, Filling]

    def complaints(self) -> Iterator[str]:
        yield from self.ledger.complaints[:MAX_TOLD]
        for model, filling in self.filling.items():
            if filling.share_full < MIN_FULL:
                yield f"{model} had callers for all its slots at only {filling.share_full:.0%} of the looks"
        for growth in self.growth:
            yield from growth.complaints()
        if self.more_regions > 0:
            yield f"there are {self.more_regions} shared-memory regions more than before"
        first, *_, last = self.silence
        if last > first * (1 + MAX_MORE_SILENCE) + SILENCE_NOISE:
            yield f"listeners waited {first:.3f} s for each second of audio at first, {last:.3f} s at the end"


def soak(
    server: Server,
    gateway_url: str,
    gateway_pid: int,
    *,
    seconds: float,
    callers: int,
    gateway_callers: int,
    look_every_s: float = LOOK_EVERY_S,
) -> Soak:
    """Call a server for so long, and judge."""
    watch = Watch(processes_of(server, gateway_pid), look_every_s)
    count = Count(server, look_every_s)
    address = f"127.0.0.1:{server.grpc_port}"
    with crowd(address, gateway_url, callers=callers, gateway_callers=gateway_callers) as everybody:
        everybody.call_together(min(WARM_UP_S, seconds / 4))
        before, regions_before = at_rest(server, watch)
        began_s = time.monotonic()
        everybody.call_together(seconds, [watch.look_until, count.look_until])
        ended_s = time.monotonic()
        after, regions_after = at_rest(server, watch)
    return Soak(
        (ended_s - began_s) / 60,
        everybody.ledger,
        [Growth.of(name, looks, before[name], after[name]) for name, looks in watch.looks.items()],
        regions_after - regions_before,
        silence_by_third(everybody.ledger.silence, began_s, ended_s),
        {model: Filling.of(looks) for model, looks in count.looks.items() if looks},
    )


def at_rest(server: Server, watch: Watch) -> tuple[dict[str, Look], int]:
    """The processes, and how many shared-memory regions there are, once whoever left early is gone."""
    if server.process.poll() is not None:
        raise SystemExit(f"tritonserver ended with status {server.process.returncode}; see {server.log_path}")
    deadline = time.monotonic() + PATIENCE_S
    try:
        while any(counted(server, "qwen3_tts_active_slots", model) for model in TALKERS):
            if time.monotonic() > deadline:
                raise SystemExit("slots are still taken minutes after the last caller")
            time.sleep(0.1)
    except OSError as error:
        raise SystemExit(f"tritonserver hangs: {error}; see {server.log_path}") from error
    return watch.look(), len(server.shared_memory_regions())


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    build_all(ROOT / "checkpoints" / "tiny")
    store = {"VOICE_STORE": str(ROOT / ".server" / "soak-voices")}
    with serving(MODELS, store, log="soak.log") as server, gateway_of(server) as gateway:
        found = soak(
            server,
            gateway.url,
            gateway.pid,
            seconds=60 * options.minutes,
            callers=options.callers,
            gateway_callers=options.gateway_callers,
        )
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    write_up(found, options, provenance).publish(options.results)
    if any(found.complaints()):
        sys.exit(1)


# --- the report -------------------------------------------------------------------------------------------


def write_up(found: Soak, options: argparse.Namespace, provenance: Provenance) -> Report:
    ledger = found.ledger
    kinds = sorted({kind for kind, _ in ledger.done})
    filling = "; ".join(
        f"{model} {one.share_full:.0%} and {one.active_slots:.1f}" for model, one in found.filling.items()
    )
    silence = ", ".join(f"{third:.3f}" for third in found.silence)
    return Report(
        title=f"A soak of {found.minutes:.0f} minutes",
        name=f"{device_kind()}-soak-tiny",
        method=METHOD.format(
            lines=sum(map(len, lines().values())),
            callers=options.callers,
            gateway_callers=options.gateway_callers,
            speak=DEEDS[SPEAK],
            leave=DEEDS[LEAVE],
            nonsense=DEEDS[NONSENSE],
            look_s=LOOK_EVERY_S,
            warm_up=WARM_UP_SHARE,
            max_mib=MAX_RISE_BYTES / 2**20,
            more=MAX_MORE,
            silence_ms=1000 * SILENCE_NOISE,
            full=MIN_FULL,
        ),
        sections=[
            verdict(found),
            table(("utterances", *DEEDS), [(k, *(ledger.done[k, deed] for deed in DEEDS)) for k in kinds]),
            table(
                ("process", "memory, MiB", "rise, MiB", "MiB an hour", "descriptors more", "threads more"),
                map(growth_row, found.growth),
            ),
            f"Shared-memory regions more than before: {found.more_regions}."
            f" Looks that found callers for all {SLOTS} slots of a model, and slots in use: {filling}."
            f" Silence for each second of audio, by thirds of the time: {silence} s.",
        ],
        figures={
            "minutes": found.minutes,
            "num_verified": ledger.num_verified,
            "num_wrong": len(ledger.complaints),
            "complaints": list(found.complaints()),
            "done": {f"{kind}: {deed}": count for (kind, deed), count in sorted(ledger.done.items())},
            "growth": [asdict(growth) for growth in found.growth],
            "more_regions": found.more_regions,
            "filling": {model: asdict(one) for model, one in found.filling.items()},
            "silence_per_audio_s_by_third": list(found.silence),
        },
        provenance=provenance,
    )


def verdict(found: Soak) -> str:
    ledger = found.ledger
    told = (
        f"{ledger.num_verified} utterances were heard to their end with every sample as it should be;"
        f" {sum(ledger.done.values())} requests ended as they should, warm-up included."
    )
    complaints = [f"* {complaint}" for complaint in found.complaints()]
    if not complaints:
        return f"{told} Nothing was wrong."
    return "\n".join([f"{told} {len(ledger.complaints)} did not. **This was found:**\n", *complaints])


def growth_row(growth: Growth) -> tuple[object, ...]:
    return (
        growth.process,
        f"{growth.rss_bytes / 2**20:.0f}",
        f"{growth.rise_bytes / 2**20:.1f}",
        f"{growth.bytes_per_hour / 2**20:.1f}",
        growth.more_descriptors,
        growth.more_threads,
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/soak.py",
        description="Hold every sample of many callers against what it should be.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="default: %(default)s")
    parser.add_argument("--callers", type=int, default=48, help="of each model that speaks")
    parser.add_argument("--gateway-callers", type=int, default=4)
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
