"""More callers than there is capacity for, who come when they come: who is served, who turned away how.

    make overload
    python perf/overload.py --multiples 1 2 10 --duration-s 60

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import httpx
import numpy as np

from checkpoints import build_endless
from load import MODEL, TEXT, VOICE, sing
from qwen3_tts_client import AsyncSpeechClient, Overloaded, SpeechClient
from report import MachineMeter, Provenance, Report, add_results_option, device_kind, progress, table
from serving import gateway_of, serving

FRAME_S = 0.08
SAMPLE_RATE = 24_000
SLOTS = 16
FIRST, USUAL = 1, 2  # priorities; lower goes first, and 2 is a caller's who gives none
FIRST_EVERY = 20  # callers: half the capacity at ten times of it
GATEWAY_EVERY = 10
RAMP_SHARE = 0.3  # of the time, until slots and queues are as full as they will be
PATIENCE_S = 300.0
QUEUE_FULL, QUEUE_TIMEOUT = "Exceeds maximum queue size", "Request timeout expired"

MIN_GOODPUT = 0.95  # of that at capacity
MAX_REJECTION_S = 0.1  # 99 of 100

METHOD = """
A tritonserver and a gateway started for this run serve {model} with random weights of shape tiny, which never
end an utterance by themselves: each has {frames} frames ({audio_s:g} s of audio). Capacity is what {slots}
callers who start together get, in seconds of audio per second, the better of two rounds. Then callers come at
a steady rate, whoever else is still being served, for {duration_s:g} s at each multiple of the capacity, one
of {first_every} with priority 1, the others with the default, 2; one of {gateway_every} through the gateway,
the others by gRPC. Goodput is the audio that reached callers per second after the first {ramp:.0%} of the
time; that of utterances which failed in the end does not count. Turned away is whom Triton's full queue
refused; a rejection's time is from sending the request to knowing it. It is labelled if it is the client's
Overloaded with Triton's reason, or 503 with Retry-After. The callers run on the server's cores.
"""


@dataclass
class Visit:
    """One caller's, from the moment they came.

    Attributes:
        chunks: when each arrived, by the clock, and its seconds of audio.
        rejected_after_s: when they knew that there is no room.
        timed_out: they were let into the queue, and waited in it too long.
        failure: anything else that is not audio.
    """

    priority: int
    through_gateway: bool
    came_at_s: float
    chunks: list[tuple[float, float]] = field(default_factory=list)
    rejected_after_s: float | None = None
    timed_out: bool = False
    is_labelled: bool = True
    failure: str = ""

    def reject(self, reason: str) -> None:
        self.rejected_after_s = time.perf_counter() - self.came_at_s
        self.timed_out = QUEUE_TIMEOUT in reason
        self.is_labelled = self.timed_out or QUEUE_FULL in reason

    @property
    def first_audio_s(self) -> float | None:
        return self.chunks[0][0] - self.came_at_s if self.chunks else None


@dataclass(frozen=True)
class Rush:
    """Callers at one multiple of the capacity.

    Args:
        goodput: seconds of audio per second.
        rejection_p50_s, rejection_p99_s: of those turned away at a full queue; 0 if there were none.
        served, first_audio_p50_s: by priority, of those who came after the ramp: who got audio, and when.
    """

    multiple: float
    rate_per_s: float
    callers: int
    goodput: float
    turned_away: int
    rejection_p50_s: float
    rejection_p99_s: float
    timed_out: int
    unlabelled: int
    failures: Sequence[str]
    served: dict[int, float]
    first_audio_p50_s: dict[int, float]

    @classmethod
    def of(
        cls, multiple: float, rate_per_s: float, visits: Sequence[Visit], window: tuple[float, float]
    ) -> Rush:
        low, high = window
        times = [visit.rejected_after_s for visit in visits if visit.rejected_after_s and not visit.timed_out]
        p50, p99 = np.percentile(times, [50, 99]).tolist() if times else (0.0, 0.0)
        got = [visit for visit in visits if visit.chunks and not visit.failure]
        heard_s = sum(audio_s for visit in got for at_s, audio_s in visit.chunks if low <= at_s < high)
        late = [visit for visit in visits if visit.came_at_s >= low]  # the first ones find free slots
        settled = [visit for visit in late if visit.chunks or visit.rejected_after_s or visit.failure]
        return cls(
            multiple,
            rate_per_s,
            callers=len(visits),
            goodput=heard_s / (high - low),
            turned_away=len(times),
            rejection_p50_s=p50,
            rejection_p99_s=p99,
            timed_out=sum(visit.timed_out for visit in visits),
            unlabelled=sum(not visit.is_labelled for visit in visits),
            failures=[visit.failure for visit in visits if visit.failure],
            served={priority: share_served(settled, priority) for priority in (FIRST, USUAL)},
            first_audio_p50_s={priority: median_first_audio_s(late, priority) for priority in (FIRST, USUAL)},
        )


def share_served(visits: Sequence[Visit], priority: int) -> float:
    """Of those of whom it is known."""
    own = [bool(visit.chunks) for visit in visits if visit.priority == priority]
    return sum(own) / len(own) if own else math.nan


def median_first_audio_s(visits: Sequence[Visit], priority: int) -> float:
    waits = [visit.first_audio_s for visit in visits if visit.priority == priority and visit.first_audio_s]
    return float(np.median(waits)) if waits else math.nan


# --- callers ----------------------------------------------------------------------------------------------


async def rush(
    grpc_address: str, gateway_url: str, *, multiple: float, rate_per_s: float, duration_s: float, frames: int
) -> Rush:
    """Let callers come at a rate for so long; who is still there then leaves."""
    visits: list[Visit] = []
    async with (
        AsyncSpeechClient(grpc_address, timeout_s=PATIENCE_S) as tts,
        httpx.AsyncClient(
            base_url=gateway_url, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)
        ) as http,
    ):
        began_s = time.perf_counter()
        calls = []
        for number in range(int(rate_per_s * duration_s)):
            await asyncio.sleep(max(0.0, began_s + number / rate_per_s - time.perf_counter()))
            priority = FIRST if number % FIRST_EVERY == 0 else USUAL
            through_gateway = priority == USUAL and number % GATEWAY_EVERY == 1
            visit = Visit(priority, through_gateway, time.perf_counter())
            visits.append(visit)
            asking = (
                ask_gateway(http, visit, number, frames)
                if through_gateway
                else ask_triton(tts, visit, number, frames)
            )
            calls.append(asyncio.create_task(asking))
        await asyncio.sleep(max(0.0, began_s + duration_s - time.perf_counter()))
        ended_s = time.perf_counter()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    return Rush.of(multiple, rate_per_s, visits, (began_s + RAMP_SHARE * (ended_s - began_s), ended_s))


async def ask_triton(tts: AsyncSpeechClient, visit: Visit, seed: int, frames: int) -> None:
    how = {"seed": seed, "max_frames": frames, "priority": visit.priority}
    try:
        async with tts.stream(TEXT, VOICE, language="English", **how) as speech:
            async for samples in speech:
                visit.chunks.append((time.perf_counter(), len(samples) / SAMPLE_RATE))
    except Overloaded as error:
        visit.reject(str(error))
    except Exception as error:
        visit.failure = f"{type(error).__name__}: {error}"


async def ask_gateway(http: httpx.AsyncClient, visit: Visit, seed: int, frames: int) -> None:
    body = {"input": TEXT, "voice": VOICE, "language": "English", "seed": seed, "response_format": "pcm"}
    body["max_new_tokens"] = frames + 1
    try:
        async with http.stream("POST", "/v1/audio/speech", json=body) as response:
            if response.status_code == 503:
                visit.reject((await response.aread()).decode())
                visit.is_labelled = "Retry-After" in response.headers
            elif response.status_code != 200:
                visit.failure = f"status {response.status_code}: {(await response.aread()).decode()}"
            else:
                async for content in response.aiter_raw():
                    visit.chunks.append((time.perf_counter(), len(content) / 2 / SAMPLE_RATE))
    except httpx.HTTPError as error:
        visit.failure = f"{type(error).__name__}: {error}"


def capacity_of(grpc_address: str, frames: int) -> float:
    """Seconds of audio per second."""
    with SpeechClient(grpc_address, timeout_s=PATIENCE_S) as tts:
        return max(sing(tts, SLOTS, frames).audio_s_per_s for _ in range(2))


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    checkpoint = {"QWEN_TTS_CUSTOM_VOICE_MODEL": str(build_endless("tiny"))}
    with serving([MODEL], checkpoint, log="overload.log") as server, gateway_of(server) as gateway:
        address = f"127.0.0.1:{server.grpc_port}"
        capacity = capacity_of(address, options.frames)
        rushes = []
        for multiple in options.multiples:
            progress(f"{multiple:g} times {capacity:.3g} s of audio per second")
            coming = rush(
                address,
                gateway.url,
                multiple=multiple,
                rate_per_s=multiple * capacity / (options.frames * FRAME_S),
                duration_s=options.duration_s,
                frames=options.frames,
            )
            rushes.append(asyncio.run(coming))
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    write_up(capacity, rushes, options, provenance).publish(options.results)


# --- the report -------------------------------------------------------------------------------------------


def write_up(
    capacity: float, rushes: Sequence[Rush], options: argparse.Namespace, provenance: Provenance
) -> Report:
    return Report(
        title="More callers than there is capacity for",
        name=f"{device_kind()}-overload-tiny",
        method=METHOD.format(
            model=MODEL,
            frames=options.frames,
            audio_s=options.frames * FRAME_S,
            slots=SLOTS,
            duration_s=options.duration_s,
            first_every=FIRST_EVERY,
            gateway_every=GATEWAY_EVERY,
            ramp=RAMP_SHARE,
        ),
        sections=[
            f"Capacity: {capacity:.3g} s of audio per second.",
            table(COLUMNS, map(row, rushes)),
            *judgement(rushes),
        ],
        figures={"capacity_audio_s_per_s": capacity, "rushes": [asdict(one) for one in rushes]},
        provenance=provenance,
    )


COLUMNS = (
    "× capacity",
    "callers",
    "goodput, audio s per s",
    "turned away",
    "rejection p50, ms",
    "p99, ms",
    "timed out in the queue",
    "not labelled",
    "other failures",
    "priority 1: served; first audio p50, s",
    "priority 2",
)


def row(rush: Rush) -> tuple[object, ...]:
    served = (f"{rush.served[p]:.0%}; {rush.first_audio_p50_s[p]:.2f}" for p in (FIRST, USUAL))
    return (
        f"{rush.multiple:g}",
        rush.callers,
        f"{rush.goodput:.3g}",
        rush.turned_away,
        f"{1000 * rush.rejection_p50_s:.0f}",
        f"{1000 * rush.rejection_p99_s:.0f}",
        rush.timed_out,
        rush.unlabelled,
        len(rush.failures),
        *served,
    )


def judgement(rushes: Sequence[Rush]) -> list[str]:
    """What was promised of the highest multiple, held against the first."""
    base, peak = rushes[0], rushes[-1]
    share, p99_ms = peak.goodput / base.goodput, 1000 * peak.rejection_p99_s
    goodput = f"goodput at {peak.multiple:g} × is {share:.0%} of that at {base.multiple:g} ×"
    promises = {
        f"{goodput}, at least {MIN_GOODPUT:.0%}": share >= MIN_GOODPUT,
        f"p99 of a rejection is {p99_ms:.0f} ms, below {1000 * MAX_REJECTION_S:.0f} ms": (
            peak.rejection_p99_s < MAX_REJECTION_S
        ),
        "every rejection is labelled, and nothing else failed": not (peak.unlabelled or peak.failures),
        "priority 1 is served before priority 2": (
            peak.served[FIRST] > peak.served[USUAL]
            and not peak.first_audio_p50_s[FIRST] >= peak.first_audio_p50_s[USUAL]
        ),
    }
    return ["\n".join(f"* {'Kept' if kept else '**Not kept**'}: {told}." for told, kept in promises.items())]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/overload.py", description="Measure callers beyond the capacity of the real server."
    )
    parser.add_argument("--multiples", nargs="+", type=float, default=[1.0, 2.0, 10.0])
    parser.add_argument("--duration-s", type=float, default=60.0, help="of each (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=125, help="of each utterance (default: %(default)s)")
    add_results_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
