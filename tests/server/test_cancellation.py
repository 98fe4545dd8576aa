"""Whoever stops listening is no longer spoken to, however they leave, and nobody else notices."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import cycle

import pytest
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from callers import (
    ENDLESS,
    TEN_SECONDS,
    assert_same_audio,
    client_of,
    events,
    grpc_address,
    infer,
    posted,
)
from metrics_page import ACTIVE, FRAMES, MetricsWatch, metrics_at_rest, outcomes, wait_for_metrics
from qwen3_tts_client import AsyncSpeechClient, Cancelled
from qwen3_tts_engine.launch.server import Server

pytestmark = pytest.mark.triton

TEXT = "A story without an end."

LISTENING_PROCESS = f"""
import sys
from qwen3_tts_client import SpeechClient
with SpeechClient(sys.argv[1]) as tts, tts.stream({TEXT!r}, **{ENDLESS}) as speech:
    for chunk in speech:
        print("heard a chunk", flush=True)
"""


def leaves_the_block(server: Server) -> None:
    with client_of(server) as tts, tts.stream(TEXT, **ENDLESS) as speech:
        next(speech)


def leaves_the_block_with_an_error(server: Server) -> None:
    with suppress(LookupError), client_of(server) as tts, tts.stream(TEXT, **ENDLESS) as speech:
        next(speech)
        raise LookupError("the player is gone")


def cancels_from_another_thread(server: Server) -> None:
    with client_of(server) as tts, tts.stream(TEXT, **ENDLESS) as speech:
        next(speech)
        threading.Thread(target=speech.cancel).start()
        with pytest.raises(Cancelled):
            speech.read()


def closes_the_client(server: Server) -> None:
    tts = client_of(server)
    with tts.stream(TEXT, **ENDLESS) as speech:
        next(speech)
        tts.close()
        with pytest.raises(Cancelled):
            speech.read()


def stops_to_await(server: Server) -> None:
    async def listen() -> None:
        async with (
            AsyncSpeechClient(grpc_address(server)) as tts,
            tts.stream(TEXT, **ENDLESS) as speech,
        ):
            async for _ in speech:
                break

    asyncio.run(listen())


def cancels_the_task(server: Server) -> None:
    async def listen(first_chunk: asyncio.Event) -> None:
        async with AsyncSpeechClient(grpc_address(server)) as tts, tts.stream(TEXT, **ENDLESS) as speech:
            async for _ in speech:
                first_chunk.set()

    async def lose_interest() -> None:
        first_chunk = asyncio.Event()
        task = asyncio.create_task(listen(first_chunk))
        await first_chunk.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(lose_interest())


def meets_its_deadline(server: Server) -> None:
    with pytest.raises(InferenceServerException) as raised:
        list(infer(server, text=TEXT, **ENDLESS, deadline_s=2))
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def cancels_a_request_of_three_rows(server: Server) -> None:
    with closing(infer(server, text=[TEXT] * 3, **ENDLESS)) as responses:
        while next(responses).row != 2:
            pass


def cancels_what_is_not_streamed(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: list(infer(server, text=TEXT, stream=False, **ENDLESS, deadline_s=2)))
        wait_for_metrics(server, {ACTIVE: 1})
        assert isinstance(waiting.exception(), InferenceServerException)


def is_killed(server: Server) -> None:
    command = [sys.executable, "-c", LISTENING_PROCESS, grpc_address(server)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "heard a chunk\n"
        process.kill()


def drops_the_http_connection(server: Server) -> None:
    with posted(server, "generate_stream", {"text": TEXT, **ENDLESS}) as response:
        next(events(response))


@pytest.mark.parametrize(
    "caller",
    [
        leaves_the_block,
        leaves_the_block_with_an_error,
        cancels_from_another_thread,
        closes_the_client,
        stops_to_await,
        cancels_the_task,
        meets_its_deadline,
        cancels_a_request_of_three_rows,
        cancels_what_is_not_streamed,
        is_killed,
        drops_the_http_connection,
    ],
    ids=lambda caller: caller.__name__,
)
def test_a_caller_who_leaves_frees_the_slot_and_is_counted_once(
    server: Server, caller: Callable[[Server], None]
) -> None:
    watch = MetricsWatch(server)
    caller(server)
    moved = watch.moved()
    assert outcomes(moved) == {"cancelled": 1}
    assert not any("finish_total" in series for series in moved)


def test_not_a_frame_is_spoken_after_the_last_listener_left(server: Server) -> None:
    leaves_the_block(server)
    then = metrics_at_rest(server)
    assert then[FRAMES] > 0
    with client_of(server) as tts:
        spoken = tts.synthesize(TEXT, seed=1).num_frames
    assert metrics_at_rest(server)[FRAMES] == then[FRAMES] + spoken


def test_callers_who_leave_before_they_hear_anything_leave_nothing_behind(server: Server) -> None:
    watch = MetricsWatch(server)
    with client_of(server) as tts:
        for _ in range(20):
            with tts.stream(TEXT, **ENDLESS):
                pass
        # Whom Triton itself saw leaving, the model never meets.
        assert watch.outcomes(answered=0).keys() <= {"cancelled"}
        assert tts.synthesize(TEXT, seed=1).num_frames > 0


def test_others_speak_on_unchanged_while_their_neighbours_leave(server: Server) -> None:
    with client_of(server) as tts:

        def say(seed: int) -> NDArray:
            return tts.synthesize(TEXT, seed=seed, **TEN_SECONDS).samples

        alone = [say(seed) for seed in range(2)]
        with ThreadPoolExecutor() as callers:
            together = [callers.submit(say, seed) for seed in range(2)]
            for leave in cycle(
                (leaves_the_block, drops_the_http_connection, cancels_a_request_of_three_rows)
            ):
                leave(server)
                if all(speech.done() for speech in together):
                    break
    for speech, expected in zip(together, alone, strict=True):
        assert_same_audio(speech.result(), expected)


def test_who_leaves_after_the_last_chunk_was_served(server: Server) -> None:
    watch = MetricsWatch(server)
    with client_of(server) as tts, tts.stream(TEXT, seed=1) as speech:
        speech.read()
    assert watch.outcomes() == {"ok": 1}
