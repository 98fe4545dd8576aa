"""More callers than there is capacity for, who come when they come: who is served, who turned away how.

    make overload
    python perf/overload.py --multiples 1 2 10 --rounds 5

perf/README.md tells how it measures; the report goes to perf/results/. It ends with status 1 when a promise
was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

import httpx
import numpy as np
import psutil

from checkpoints import SHAPES, build_endless
from load import MODEL, TEXT, VOICE
from qwen3_tts_client import AsyncSpeechClient, Overloaded
from qwen3_tts_engine.launch.server import Server
from report import (
    MachineMeter,
    Provenance,
    Report,
    Spread,
    add_results_option,
    device_kind,
    progress,
    table,
)
from serving import Gateway, gateway_of, processes_of, serving

MODELS = (MODEL, "voices")  # without it, every client would ask anew whose voice a name is
TASKS = ("custom_voice", "base")
FRAME_S = 0.08
SAMPLE_RATE = 24_000
SLOTS = 16
FIRST, USUAL = 1, 2  # priorities; lower goes first, and 2 is a caller's who gives none
FIRST_EVERY = 20  # callers: half the capacity at ten times of it
GATEWAY_EVERY = 10
RAMP_SHARE = 0.3  # of the time, until slots and queues are as full as they will be
PATIENCE_S = 300.0
WARM_UP_S = 5.0
SEED = 5
QUEUE_FULL, QUEUE_TIMEOUT = "Exceeds maximum queue size", "Request timeout expired"

MIN_GOODPUT = 0.95  # of that at capacity
MAX_REJECTION_S = 0.1  # 99 of 100
MAX_LATENESS_S = 0.02  # 99 of 100 callers; beyond that it is the callers who cannot keep up

Calls = list[asyncio.Task[None]]

METHOD = """
A tritonserver and a gateway started for this run serve {model} with random weights of shape {shape}, which
never end an utterance by themselves: each has {frames} frames ({audio_s:g} s of audio). Capacity is what
{slots} callers get who come back as soon as they are done, their first utterances of different lengths, so
that some end while others begin. Then callers come at random (a Poisson process, the same in every run),
whoever else is still being served, one of {first_every} with priority 1, the others with the default, 2; one
of {gateway_every} through the gateway, the others by gRPC. Who is turned away does not come back: the rate is
that of all requests, those of callers who try again after Retry-After among them. In each of {rounds} rounds,
every other one in the opposite order, capacity and then each multiple of it take {duration_s:g} s. Goodput is
the audio that reached callers per second after the first {ramp:.0%} of the time; that of utterances which
failed in the end does not count. Its share is of the round's capacity, or of the goodput at the first
multiple if that is more: chance may bring too few at 1 × to fill the slots. Figures of goodput are medians of
the rounds with the lowest and the highest in parentheses, the others are over all rounds. Turned away is whom
Triton's full queue refused; a rejection's time is from when the caller was due to their knowing it, so that
callers who are slow to send or to listen make it longer, never shorter; how late they were when they sent is
told beside it. A rejection is labelled if it is the client's Overloaded with Triton's reason, or 503 with
Retry-After. All callers are one process with one event loop, on the server's cores.
"""


@dataclass
class Visit:
    """One caller's, from the moment they were due.

    Attributes:
        came_at_s: when they did come; later than due if the callers' process had no time for them.
        chunks: when each arrived, by the clock, and its seconds of audio.
        rejected_after_s: when they knew that there is no room.
        timed_out: they were let into the queue, and waited in it too long.
        failure: anything else that is not audio.
    """

    priority: int
    due_at_s: float
    came_at_s: float
    chunks: list[tuple[float, float]] = field(default_factory=list)
    rejected_after_s: float | None = None
    timed_out: bool = False
    is_labelled: bool = True
    failure: str = ""

    def reject(self, reason: str) -> None:
        self.rejected_after_s = time.perf_counter() - self.due_at_s
        self.timed_out = QUEUE_TIMEOUT in reason
        self.is_labelled = self.timed_out or QUEUE_FULL in reason

    @property
    def first_audio_s(self) -> float | None:
        return self.chunks[0][0] - self.due_at_s if self.chunks else None

    @property
    def is_settled(self) -> bool:
        """Whether it is known what became of them."""
        return bool(self.chunks or self.rejected_after_s or self.failure)


@dataclass(frozen=True)
class Rush:
    """Callers for some seconds.

    Args:
        began_s, ended_s: by the clock.
        cores: of the processors, that each process used meanwhile.
    """

    visits: Sequence[Visit]
    began_s: float
    ended_s: float
    cores: Mapping[str, float]

    @property
    def full_from_s(self) -> float:
        """From when on slots and queues are as full as they will be."""
        return self.began_s + RAMP_SHARE * (self.ended_s - self.began_s)

    @property
    def goodput(self) -> float:
        """Seconds of audio per second."""
        got = [visit for visit in self.visits if not visit.failure]
        low, high = self.full_from_s, self.ended_s
        heard_s = sum(audio_s for visit in got for at_s, audio_s in visit.chunks if low <= at_s < high)
        return heard_s / (high - low)

    @property
    def late_visits(self) -> list[Visit]:
        """Without the first, who find free slots."""
        return [visit for visit in self.visits if visit.came_at_s >= self.full_from_s]


@dataclass(frozen=True)
class Pressure:
    """Callers at one multiple of the capacity, over all rounds.

    Args:
        rate_per_s: the mean of the rounds.
        goodput: seconds of audio per second.
        share: of what the round could do: its capacity, or its goodput at the first multiple if that is more.
        late_p99_s: how late callers were when they sent.
        rejection_p50_s, rejection_p99_s: of those turned away at a full queue; 0 if there were none.
        served, first_audio_p50_s: by priority, of those who came after the ramp: who got audio, and when.
        cores: of the processors, by process; the mean of the rounds.
    """

    multiple: float
    rate_per_s: float
    callers: int
    goodput: Spread
    share: Spread
    late_p99_s: float
    turned_away: int
    rejection_p50_s: float
    rejection_p99_s: float
    timed_out: int
    unlabelled: int
    failures: Sequence[str]
    served: Mapping[int, float]
    first_audio_p50_s: Mapping[int, float]
    cores: Mapping[str, float]

    @classmethod
    def of(cls, multiple: float, rushes: Sequence[Rush], bests: Sequence[float]) -> Pressure:
        visits = [visit for rush in rushes for visit in rush.visits]
        late = [visit for rush in rushes for visit in rush.late_visits]
        times = [visit.rejected_after_s for visit in visits if visit.rejected_after_s and not visit.timed_out]
        p50, p99 = np.percentile(times, [50, 99]).tolist() if times else (0.0, 0.0)
        return cls(
            multiple,
            rate_per_s=len(visits) / sum(rush.ended_s - rush.began_s for rush in rushes),
            callers=len(visits),
            goodput=Spread.of(rush.goodput for rush in rushes),
            share=Spread.of(rush.goodput / best for rush, best in zip(rushes, bests, strict=True)),
            late_p99_s=float(np.percentile([visit.came_at_s - visit.due_at_s for visit in visits], 99)),
            turned_away=len(times),
            rejection_p50_s=p50,
            rejection_p99_s=p99,
            timed_out=sum(visit.timed_out for visit in visits),
            unlabelled=sum(not visit.is_labelled for visit in visits),
            failures=[visit.failure for visit in visits if visit.failure],
            served={priority: share_served(late, priority) for priority in (FIRST, USUAL)},
            first_audio_p50_s={priority: median_first_audio_s(late, priority) for priority in (FIRST, USUAL)},
            cores={name: statistics.mean(rush.cores[name] for rush in rushes) for name in rushes[0].cores},
        )


def share_served(visits: Sequence[Visit], priority: int) -> float:
    """Of those of whom it is known."""
    own = [bool(visit.chunks) for visit in visits if visit.priority == priority and visit.is_settled]
    return sum(own) / len(own) if own else math.nan


def median_first_audio_s(visits: Sequence[Visit], priority: int) -> float:
    waits = [visit.first_audio_s for visit in visits if visit.priority == priority and visit.first_audio_s]
    return float(np.median(waits)) if waits else math.nan


# --- callers ----------------------------------------------------------------------------------------------


class Callers:
    """Everybody who calls, on one event loop: gRPC's poller would go on calling back those before it.

    Args:
        processes: whose use of the processors is told.
        frames: of each utterance.
    """

    def __init__(
        self,
        tts: AsyncSpeechClient,
        http: httpx.AsyncClient,
        processes: Mapping[str, psutil.Process],
        frames: int,
    ) -> None:
        self._tts = tts
        self._http = http
        self._processes = processes
        self._frames = frames

    @classmethod
    @asynccontextmanager
    async def of(
        cls, grpc_address: str, gateway_url: str, processes: Mapping[str, psutil.Process], frames: int
    ) -> AsyncIterator[Callers]:
        limits = httpx.Limits(max_connections=None)
        async with (
            AsyncSpeechClient(grpc_address, timeout_s=PATIENCE_S) as tts,
            httpx.AsyncClient(base_url=gateway_url, timeout=PATIENCE_S, limits=limits) as http,
        ):
            yield cls(tts, http, processes, frames)

    async def come_back(self, duration_s: float) -> Rush:
        """As many as there are slots, each again as soon as they are done."""
        visits: list[Visit] = []
        ends_s = time.perf_counter() + duration_s

        async def caller(number: int) -> None:
            frames = max(1, self._frames * (number + 1) // SLOTS)
            while (now_s := time.perf_counter()) < ends_s:
                visits.append(Visit(USUAL, now_s, now_s))
                await self._ask_triton(visits[-1], number, frames)
                frames = self._frames

        async def come(calls: Calls) -> None:
            calls.extend(asyncio.create_task(caller(number)) for number in range(SLOTS))

        return await self._watch(visits, come, duration_s)

    async def rush(self, rate_per_s: float, duration_s: float) -> Rush:
        """Newcomers at a rate, whoever else is still there."""
        visits: list[Visit] = []
        num_callers = int(rate_per_s * duration_s)
        due_after_s = np.sort(np.random.default_rng(SEED).uniform(0.0, duration_s, num_callers)).tolist()

        async def come(calls: Calls) -> None:
            began_s = time.perf_counter()
            for number, after_s in enumerate(due_after_s):
                await asyncio.sleep(max(0.0, began_s + after_s - time.perf_counter()))
                priority = FIRST if number % FIRST_EVERY == 0 else USUAL
                visit = Visit(priority, began_s + after_s, time.perf_counter())
                visits.append(visit)
                through_gateway = priority == USUAL and number % GATEWAY_EVERY == 1
                ask = self._ask_gateway if through_gateway else self._ask_triton
                calls.append(asyncio.create_task(ask(visit, number, self._frames)))

        return await self._watch(visits, come, duration_s)

    async def _watch(
        self, visits: Sequence[Visit], come: Callable[[Calls], Awaitable[None]], duration_s: float
    ) -> Rush:
        """Let callers come; whoever is still there after so long leaves."""
        calls: Calls = []
        began_s, before_s = time.perf_counter(), self._cpu_s()
        await come(calls)
        await asyncio.sleep(max(0.0, began_s + duration_s - time.perf_counter()))
        ended_s, after_s = time.perf_counter(), self._cpu_s()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        cores = {name: (after_s[name] - before_s[name]) / (ended_s - began_s) for name in before_s}
        return Rush(visits, began_s, ended_s, cores)

    def _cpu_s(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: spent.user + spent.system for name, spent in times.items()}

    async def _ask_triton(self, visit: Visit, seed: int, frames: int) -> None:
        how = {"seed": seed, "max_frames": frames, "priority": visit.priority}
        try:
            async with self._tts.stream(TEXT, VOICE, language="English", **how) as speech:
                async for samples in speech:
                    visit.chunks.append((time.perf_counter(), len(samples) / SAMPLE_RATE))
        except Overloaded as error:
            visit.reject(str(error))
        except Exception as error:
            visit.failure = f"{type(error).__name__}: {error}"

    async def _ask_gateway(self, visit: Visit, seed: int, frames: int) -> None:
        body = {"input": TEXT, "voice": VOICE, "language": "English", "seed": seed, "response_format": "pcm"}
        body["max_new_tokens"] = frames + 1
        try:
            async with self._http.stream("POST", "/v1/audio/speech", json=body) as response:
                if response.status_code == 503:
                    visit.reject((await response.aread()).decode())
                    visit.is_labelled = visit.is_labelled and "Retry-After" in response.headers
                elif response.status_code != 200:
                    visit.failure = f"status {response.status_code}: {(await response.aread()).decode()}"
                else:
                    async for content in response.aiter_raw():
                        visit.chunks.append((time.perf_counter(), len(content) / 2 / SAMPLE_RATE))
        except httpx.HTTPError as error:
            visit.failure = f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Round:
    """What one round saw: callers who came back, and those who came at each multiple of what these got."""

    capacity: Rush
    rushes: Mapping[float, Rush]


async def play(server: Server, gateway: Gateway, options: argparse.Namespace) -> list[Round]:
    address, processes = f"127.0.0.1:{server.grpc_port}", processes_of(server, gateway.pid)
    processes["callers"] = psutil.Process()
    async with Callers.of(address, gateway.url, processes, options.frames) as callers:
        await callers.come_back(WARM_UP_S)
        return [await play_round(callers, number, options) for number in range(options.rounds)]


async def play_round(callers: Callers, number: int, options: argparse.Namespace) -> Round:
    progress(f"round {number + 1} of {options.rounds}")
    capacity = await callers.come_back(options.duration_s)
    rushes = {}
    for multiple in options.multiples[:: -1 if number % 2 else 1]:
        rate_per_s = multiple * capacity.goodput / (options.frames * FRAME_S)
        rushes[multiple] = await callers.rush(rate_per_s, options.duration_s)
    return Round(capacity, rushes)


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    built = {task: build_endless(options.shape, task) for task in TASKS}
    checkpoints = {f"QWEN_TTS_{task.upper()}_MODEL": str(directory) for task, directory in built.items()}
    with serving(MODELS, checkpoints, log="overload.log") as server, gateway_of(server) as gateway:
        rounds = asyncio.run(play(server, gateway, options))
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    pressures = pressures_of(rounds, options.multiples)
    write_up(rounds, pressures, options, provenance).publish(options.results)
    if not all(promises(pressures).values()):
        sys.exit(1)


# --- the report -------------------------------------------------------------------------------------------


def pressures_of(rounds: Sequence[Round], multiples: Sequence[float]) -> list[Pressure]:
    bests = [max(one.capacity.goodput, one.rushes[multiples[0]].goodput) for one in rounds]
    return [Pressure.of(multiple, [one.rushes[multiple] for one in rounds], bests) for multiple in multiples]


def write_up(
    rounds: Sequence[Round],
    pressures: Sequence[Pressure],
    options: argparse.Namespace,
    provenance: Provenance,
) -> Report:
    capacity = Spread.of(one.capacity.goodput for one in rounds)
    return Report(
        title="More callers than there is capacity for",
        name=f"{device_kind()}-overload-{options.shape}",
        method=METHOD.format(
            model=MODEL,
            shape=options.shape,
            frames=options.frames,
            audio_s=options.frames * FRAME_S,
            slots=SLOTS,
            duration_s=options.duration_s,
            first_every=FIRST_EVERY,
            gateway_every=GATEWAY_EVERY,
            rounds=options.rounds,
            ramp=RAMP_SHARE,
        ),
        sections=[
            f"Capacity: {capacity} s of audio per second.",
            table(COLUMNS, map(row, pressures)),
            "Cores used, by process:",
            table(("× capacity", *pressures[0].cores), map(cores_row, pressures)),
            *judgement(pressures),
        ],
        figures={
            "capacity_audio_s_per_s": asdict(capacity),
            "pressures": [asdict(one) for one in pressures],
        },
        provenance=provenance,
    )


COLUMNS = (
    "× capacity",
    "callers; per s",
    "late p99, ms",
    "goodput, audio s per s",
    "share of the best",
    "turned away",
    "rejection p50, ms",
    "p99, ms",
    "timed out in the queue",
    "not labelled",
    "other failures",
    "priority 1: served; first audio p50, s",
    "priority 2",
)


def row(pressure: Pressure) -> tuple[object, ...]:
    served = (f"{pressure.served[p]:.0%}; {pressure.first_audio_p50_s[p]:.2f}" for p in (FIRST, USUAL))
    return (
        f"{pressure.multiple:g}",
        f"{pressure.callers}; {pressure.rate_per_s:.3g}",
        f"{1000 * pressure.late_p99_s:.0f}",
        pressure.goodput,
        pressure.share,
        pressure.turned_away,
        f"{1000 * pressure.rejection_p50_s:.0f}",
        f"{1000 * pressure.rejection_p99_s:.0f}",
        pressure.timed_out,
        pressure.unlabelled,
        len(pressure.failures),
        *served,
    )


def cores_row(pressure: Pressure) -> tuple[object, ...]:
    return f"{pressure.multiple:g}", *(f"{cores:.2f}" for cores in pressure.cores.values())


def promises(pressures: Sequence[Pressure]) -> dict[str, bool]:
    """What was promised of the highest multiple, held against the first, and whether it was kept."""
    base, peak = pressures[0], pressures[-1]
    best = f"capacity, or of that at {base.multiple:g} × where it is more"
    late_ms, p99_ms = 1000 * peak.late_p99_s, 1000 * peak.rejection_p99_s
    goodput = f"goodput at {peak.multiple:g} × is {peak.share.median:.0%} of {best}"
    return {
        f"{goodput}, at least {MIN_GOODPUT:.0%}": peak.share.median >= MIN_GOODPUT,
        f"p99 of a rejection is {p99_ms:.0f} ms, below {1000 * MAX_REJECTION_S:.0f} ms": (
            peak.rejection_p99_s < MAX_REJECTION_S
        ),
        "every rejection is labelled, and nothing else failed": not (peak.unlabelled or peak.failures),
        "priority 1 is served before priority 2": (
            peak.served[FIRST] > peak.served[USUAL]
            and not peak.first_audio_p50_s[FIRST] >= peak.first_audio_p50_s[USUAL]
        ),
        f"callers came {late_ms:.0f} ms late at the p99, at most {1000 * MAX_LATENESS_S:.0f} ms": (
            peak.late_p99_s <= MAX_LATENESS_S
        ),
    }


def judgement(pressures: Sequence[Pressure]) -> list[str]:
    kept = promises(pressures).items()
    return ["\n".join(f"* {'Kept' if is_kept else '**Not kept**'}: {told}." for told, is_kept in kept)]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/overload.py", description="Measure callers beyond the capacity of the real server."
    )
    parser.add_argument(
        "--shape", choices=SHAPES, default="small", help="of the models (default: %(default)s)"
    )
    parser.add_argument("--multiples", nargs="+", type=float, default=[1.0, 2.0, 10.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=30.0, help="of each (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=63, help="of each utterance (default: %(default)s)")
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
