"""What ways of asking cost: in one request or two, whole or streamed, for the first time or again.

    python perf/overheads.py

perf/README.md tells how it measures; the report goes to perf/results/.
"""

from __future__ import annotations

import argparse
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import np_to_triton_dtype

from checkpoints import build_endless
from qwen3_tts_client import Audio, ClonedVoice, SpeechClient
from qwen3_tts_engine.launch.server import Server
from report import MachineMeter, Provenance, Report, Spread, device_kind, progress, table
from serving import Gateway, gateway_of, serving

SHAPE = "tiny"
EMBEDDING_SIZE = 64  # of its voices
TASKS = ("custom_voice", "base")
VOICE_MAKERS = ("reference_audio", "voice_encoder", "create_voice")
MODELS = (
    *(f"qwen3_tts_{task}" for task in TASKS),
    *VOICE_MAKERS,
    "qwen3_tts_voice_clone",
    "qwen3_tts",
    "voices",
)
TEXT = "Good morning. The first words are on their way while the last ones are still being made."
TRANSCRIPT = "What I say in it."
NUM_FRAMES = 39  # of 80 ms: the chunks of 1, 2, 4, 8, 12 and 12
RECORDING_S = 3.0
LONG_REFERENCE_S = 25.0
SAMPLE_RATE, FRAMES_PER_S, NUM_CODES = 24_000, 12.5, 2048
HOW = {
    "seed": np.int64(8),
    "do_sample": np.bool_(False),
    "subtalker_do_sample": np.bool_(False),
    "max_frames": np.int32(NUM_FRAMES),
}
WARM_UP_ROUNDS = 3
PATIENCE_S = 60.0

METHOD = """
A tritonserver started for this run serves random weights of shape {shape}, which never end an utterance by
themselves: each has {frames} frames ({audio_s:.3g} s of audio). One caller on the same machine asks for one
thing at a time. In each of {rounds} rounds, after {warm_ups} that do not count, every way of every table
has its turn; in every other round the ways of a table come in the opposite order, unless one is the sequel
of the other. Recordings are PCM WAV files of {recording_s:g} s and references of {reference_s:g} s are
random codes; each is made up for one voice of one round, so that nobody has kept anything of it yet. Text
and seed are always the same, and always the likeliest code is spoken. First audio is from sending the first
request to receiving the first samples, or bytes of sound, the whole to receiving the last. CPU is what the
caller and the gateway used together for every second of audio. Figures are medians over the rounds with the
lowest and the highest in parentheses; "more" is the difference to the first line, taken within a round.
Others are everybody but the client and the server it started.
"""


@dataclass(frozen=True)
class Heard:
    """One utterance, as its caller lived it."""

    first_audio_s: float
    whole_s: float
    cpu_per_audio_s: float = 0.0

    def after(self, preparation_s: float) -> Heard:
        return Heard(self.first_audio_s + preparation_s, self.whole_s + preparation_s)


Way = Callable[[], Heard]
Round = Mapping[str, Heard]  # by the name of the way


@dataclass(frozen=True)
class Comparison:
    """Ways of asking for the same thing; the others are held against the first.

    Args:
        title: of its table.
        ways: makes the ways of one round, by name; what it makes up for them takes no time of theirs.
        measures: fields of `Heard` to show.
        is_sequel: a way is what it is because of the one before it.
    """

    title: str
    ways: Callable[[Caller, np.random.Generator], dict[str, Way]]
    measures: Sequence[str]
    is_sequel: bool = False


@dataclass(frozen=True)
class Cost:
    """One way, over all rounds, in milliseconds."""

    way: str
    first_audio_ms: Spread
    whole_ms: Spread
    cpu_per_audio_ms: Spread
    first_audio_more_ms: Spread
    whole_more_ms: Spread
    cpu_per_audio_more_ms: Spread

    @classmethod
    def of(cls, way: str, rounds: Sequence[Round]) -> Cost:
        reference = next(iter(rounds[0]))

        def spread(measure: str) -> Spread:
            return Spread.of(1000 * getattr(played[way], measure) for played in rounds)

        def more(measure: str) -> Spread:
            return Spread.of(
                1000 * (getattr(played[way], measure) - getattr(played[reference], measure))
                for played in rounds
            )

        measures = ("first_audio_s", "whole_s", "cpu_per_audio_s")
        return cls(way, *map(spread, measures), *map(more, measures))


def main() -> None:
    options = parse_options()
    meter = MachineMeter()
    checkpoints = {f"QWEN_TTS_{task.upper()}_MODEL": str(build_endless(SHAPE, task)) for task in TASKS}
    with (
        serving(MODELS, checkpoints, log="overheads.log") as server,
        gateway_of(server) as gateway,
        closing(Caller(server, gateway)) as caller,
    ):
        rounds = [play(caller, number) for number in numbers(options.rounds)][WARM_UP_ROUNDS:]
        provenance = Provenance.of(meter)  # while the server still runs: its time is not the others'
    report = write_up(rounds, provenance)
    print(report.markdown())
    for path in report.write():
        progress(f"wrote {path}")


def numbers(num_rounds: int) -> Iterator[int]:
    for number in range(-WARM_UP_ROUNDS, num_rounds):
        progress("warming up" if number < 0 else f"round {number + 1} of {num_rounds}")
        yield number


def play(caller: Caller, number: int) -> list[Round]:
    """One round of every comparison; its number seeds what is made up for it."""
    dice = np.random.default_rng(number + WARM_UP_ROUNDS)
    return [play_one(comparison, caller, dice, is_odd=number % 2 == 1) for comparison in COMPARISONS]


def play_one(comparison: Comparison, caller: Caller, dice: np.random.Generator, is_odd: bool) -> Round:
    ways = comparison.ways(caller, dice)
    backwards = is_odd and not comparison.is_sequel
    heard = {name: ways[name]() for name in (reversed(ways) if backwards else ways)}
    return {name: heard[name] for name in ways}


# --- the ways ---------------------------------------------------------------------------------------------


def cloning(caller: Caller, dice: np.random.Generator) -> dict[str, Way]:
    return {
        "`create_voice`, then `qwen3_tts_base`": partial(clone_in_two, caller, recording(dice)),
        "`qwen3_tts_voice_clone`": partial(clone_in_one, caller, recording(dice)),
    }


def clone_in_two(caller: Caller, wav: bytes) -> Heard:
    started_s = time.perf_counter()
    voice = caller.ask("create_voice", ref_audio=wav, ref_text=TRANSCRIPT)
    prompt = {name: voice.as_numpy(name)[0] for name in ("speaker_embedding", "ref_codes")}
    made_s = time.perf_counter() - started_s
    return caller.stream("qwen3_tts_base", **prompt, ref_text=TRANSCRIPT).after(made_s)


def clone_in_one(caller: Caller, wav: bytes) -> Heard:
    return caller.stream("qwen3_tts_voice_clone", ref_audio=wav, ref_text=TRANSCRIPT)


def speaking(caller: Caller, dice: np.random.Generator) -> dict[str, Way]:
    speaker = {"speaker": "ryan", "language": "English"}
    direct = partial(caller.stream, "qwen3_tts_custom_voice", **speaker)
    return {
        "`qwen3_tts_custom_voice`, `stream` false": partial(direct, stream=False),
        "`qwen3_tts_custom_voice`, `stream` true": partial(direct, stream=True),
        "`qwen3_tts`, gRPC infer": partial(caller.speak_at_once, "gRPC", **speaker),
        "`qwen3_tts`, HTTP infer": partial(caller.speak_at_once, "HTTP", **speaker),
    }


def returning(caller: Caller, dice: np.random.Generator) -> dict[str, Way]:
    speak = partial(caller.stream, "qwen3_tts_base", **long_reference(dice))
    return {"the voice's first utterance": speak, "its second": speak}


def remembering(caller: Caller, dice: np.random.Generator) -> dict[str, Way]:
    speak = partial(caller.speak_with, ClonedVoice(recording(dice), TRANSCRIPT))
    return {"a `ClonedVoice`'s first utterance": speak, "its second": speak}


def through_the_gateway(caller: Caller, dice: np.random.Generator) -> dict[str, Way]:
    ask = partial(caller.ask_gateway, voice="ryan", language="English")
    ways: dict[str, Callable[[], Heard]] = {
        "`SpeechClient`, float32": partial(caller.speak_with, "ryan", language="English"),
        "the gateway, `pcm`": partial(ask, response_format="pcm"),
        "the gateway, `pcm` in Server-Sent Events": partial(ask, response_format="pcm", stream_format="sse"),
        "the gateway, `mp3`": partial(ask, response_format="mp3"),
        "the gateway, `opus`": partial(ask, response_format="opus"),
    }
    return {name: partial(caller.with_cpu, way) for name, way in ways.items()}


COMPARISONS = (
    Comparison(
        f"Cloning a recording of {RECORDING_S:g} s: the ensemble against two calls",
        cloning,
        measures=("first_audio", "whole"),
    ),
    Comparison("A whole utterance: `qwen3_tts` against the model behind it", speaking, measures=("whole",)),
    Comparison(
        f"A voice with {LONG_REFERENCE_S:g} s of reference frames: what the codec state kept for it saves",
        returning,
        measures=("first_audio",),
        is_sequel=True,
    ),
    Comparison(
        f"The client and a recording of {RECORDING_S:g} s: what it saves to keep the voice prompt",
        remembering,
        measures=("first_audio",),
        is_sequel=True,
    ),
    Comparison(
        "The gateway against the client",
        through_the_gateway,
        measures=("first_audio", "whole", "cpu_per_audio"),
    ),
)


# --- what is made up --------------------------------------------------------------------------------------


def recording(dice: np.random.Generator) -> bytes:
    """A tone and breath as a 16-bit WAV file, never the same."""
    time_s = np.arange(round(RECORDING_S * SAMPLE_RATE)) / SAMPLE_RATE
    tone = 0.5 * np.sin(2 * np.pi * dice.uniform(100, 300) * time_s)
    samples = (tone + 0.05 * dice.standard_normal(len(time_s))).astype(np.float32)
    return Audio(samples, SAMPLE_RATE, finish_reason="stop", num_frames=0).to_wav()


def long_reference(dice: np.random.Generator) -> dict[str, Any]:
    """A voice nobody recorded, as `create_voice` would have made it."""
    num_frames = round(LONG_REFERENCE_S * FRAMES_PER_S)
    return {
        "speaker_embedding": dice.standard_normal(EMBEDDING_SIZE, np.float32),
        "ref_codes": dice.integers(0, NUM_CODES, (num_frames, 16), np.int32),
        "ref_text": TRANSCRIPT,
    }


# --- the gateway ------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process that are alive, to the nanosecond."""
    accounts = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(account.read_text().split()[0]) for account in accounts) / 1e9


# --- the caller -------------------------------------------------------------------------------------------


class Caller:
    """Asks a server in every way there is, and sees to it that no utterance is shorter than another."""

    def __init__(self, server: Server, gateway: Gateway) -> None:
        self._gateway = gateway
        self._http = httpx.Client(base_url=gateway.url, timeout=PATIENCE_S)
        grpc_address = f"127.0.0.1:{server.grpc_port}"
        self._tts = SpeechClient(grpc_address, timeout_s=PATIENCE_S)
        self._clients = {
            "gRPC": over_grpc.InferenceServerClient(grpc_address),
            "HTTP": over_http.InferenceServerClient(f"127.0.0.1:{server.http_port}"),
        }

    def close(self) -> None:
        self._tts.close()
        self._http.close()
        for client in self._clients.values():
            client.close()

    def ask(self, model: str, transport: str = "gRPC", **inputs: Any) -> Any:
        """What a model answers that answers once."""
        kind = {"gRPC": over_grpc, "HTTP": over_http}[transport].InferInput
        return self._clients[transport].infer(model, tensors(kind, inputs))

    def speak_at_once(self, transport: str, **inputs: Any) -> Heard:
        started_s = time.perf_counter()
        result = self.ask("qwen3_tts", transport, text=TEXT, **HOW, **inputs)
        whole_s = time.perf_counter() - started_s
        expect_all(result.as_numpy("num_frames").item())
        return Heard(first_audio_s=whole_s, whole_s=whole_s)

    def stream(self, model: str, **inputs: Any) -> Heard:
        """One request, and a response for every chunk."""
        arrivals: queue.SimpleQueue[tuple[float, Any, Any]] = queue.SimpleQueue()
        client = self._clients["gRPC"]
        started_s = time.perf_counter()
        client.start_stream(lambda result, error: arrivals.put((time.perf_counter(), result, error)))
        try:
            given = {"text": TEXT, **HOW, **inputs}
            client.async_stream_infer(model, tensors(over_grpc.InferInput, given))
            return listen(arrivals).after(-started_s)
        finally:
            client.stop_stream()

    def ask_gateway(self, **fields: Any) -> Heard:
        """By one request of OpenAI's kind."""
        how = {name: value.item() for name, value in HOW.items() if name != "max_frames"}
        body = {"input": TEXT, "max_new_tokens": NUM_FRAMES + 1, **how, **fields}
        started_s = time.perf_counter()
        first_audio_s = None
        with self._http.stream("POST", "/v1/audio/speech", json=body) as answer:
            answer.raise_for_status()
            for _ in answer.iter_raw():
                first_audio_s = first_audio_s or time.perf_counter() - started_s
        whole_s = time.perf_counter() - started_s
        return Heard(first_audio_s or whole_s, whole_s)

    def with_cpu(self, way: Way) -> Heard:
        """The same, and what it cost the caller and the gateway."""
        before_s = self._cpu_s()
        heard = way()
        return replace(heard, cpu_per_audio_s=(self._cpu_s() - before_s) / (NUM_FRAMES / FRAMES_PER_S))

    def _cpu_s(self) -> float:
        return sum(map(cpu_s, (os.getpid(), self._gateway.pid)))

    def speak_with(self, voice: str | ClonedVoice, language: str | None = None) -> Heard:
        """By the client library, which finds out first what the voice is."""
        how = {name: value.item() for name, value in HOW.items()}
        started_s = time.perf_counter()
        with self._tts.stream(TEXT, voice, language=language, **how) as speech:
            audio = speech.read()
            whole_s = time.perf_counter() - started_s
        expect_all(audio.num_frames)
        return Heard(speech.time_to_first_audio_s or whole_s, whole_s)


def listen(arrivals: queue.SimpleQueue[tuple[float, Any, Any]]) -> Heard:
    """When the first samples and the last ones arrived, by the clock."""
    first_at_s = None
    while True:
        at_s, result, error = arrivals.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        if first_at_s is None and result.as_numpy("audio").size:
            first_at_s = at_s
        if result.as_numpy("finish_reason").item():
            expect_all(result.as_numpy("num_frames").item())
            return Heard(first_at_s or at_s, at_s)


def tensors(kind: type, inputs: Mapping[str, Any]) -> list[Any]:
    """One row of each."""
    return [tensor(kind, name, value) for name, value in inputs.items()]


def tensor(kind: type, name: str, value: Any) -> Any:
    if isinstance(value, str):
        value = value.encode()
    is_array = isinstance(value, np.ndarray)
    row = value[None] if is_array else np.array([[value]], object if isinstance(value, bytes) else None)
    return kind(name, row.shape, np_to_triton_dtype(row.dtype)).set_data_from_numpy(row)


def expect_all(num_frames: int) -> None:
    if num_frames != NUM_FRAMES:
        raise SystemExit(
            f"an utterance ended after {num_frames} of {NUM_FRAMES} frames,"
            " and utterances of different lengths cannot be compared"
        )


# --- the report -------------------------------------------------------------------------------------------


def write_up(rounds: Sequence[Sequence[Round]], provenance: Provenance) -> Report:
    costs = {
        comparison.title: [Cost.of(way, played) for way in played[0]]
        for comparison, played in zip(COMPARISONS, zip(*rounds, strict=True), strict=True)
    }
    return Report(
        title=f"What ways of asking cost: {SHAPE}",
        name=f"{device_kind()}-overheads-{SHAPE}",
        method=METHOD.format(
            shape=SHAPE,
            frames=NUM_FRAMES,
            audio_s=NUM_FRAMES / FRAMES_PER_S,
            rounds=len(rounds),
            warm_ups=WARM_UP_ROUNDS,
            recording_s=RECORDING_S,
            reference_s=LONG_REFERENCE_S,
        ),
        sections=[section(comparison, costs[comparison.title]) for comparison in COMPARISONS],
        figures={
            "max_frames": NUM_FRAMES,
            "rounds": len(rounds),
            "comparisons": {title: [asdict(cost) for cost in lines] for title, lines in costs.items()},
        },
        provenance=provenance,
    )


def section(comparison: Comparison, costs: Sequence[Cost]) -> str:
    columns = [f"{measure}{kind}_ms" for measure in comparison.measures for kind in ("", "_more")]
    header = ["", *(column.removesuffix("_ms").replace("_", " ") + ", ms" for column in columns)]
    reference, *others = [[cost.way, *(getattr(cost, column) for column in columns)] for cost in costs]
    reference[2::2] = ["" for _ in comparison.measures]  # it is no more than itself
    return f"## {comparison.title}\n\n{table(header, [reference, *others])}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python perf/overheads.py", description="Measure what ways of asking the real server cost."
    )
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
