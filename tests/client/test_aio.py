"""`AsyncSpeechClient` where awaiting makes a difference; what both clients share is in test_client.py."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from grpc import StatusCode

from fakes.triton_server import PATIENCE_S, RefusalError, chunk, error_text, final, samples_of, says, triton
from qwen3_tts_client import (
    AsyncSpeechClient,
    Cancelled,
    DesignedVoice,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    ServerUnavailable,
    SpeechClient,
)


def speaks_until_cancelled(call):
    yield chunk(0)
    call.wait_until_gone()


async def reaches(event):
    """Whether a server thread sets the event, without holding up this loop."""
    return await asyncio.to_thread(event.wait, PATIENCE_S)


async def test_chunks_arrive_and_the_stream_knows_how_it_ended():
    with triton(says(3)) as server:
        async with AsyncSpeechClient(server.url) as tts, tts.stream("Hi.") as speech:
            chunks = [part async for part in speech]
    np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate([samples_of(i) for i in range(3)]))
    assert (speech.sample_rate, speech.num_frames, speech.finish_reason) == (24000, 3, "stop")
    assert speech.time_to_first_audio_s > 0


async def test_synthesize_returns_the_whole_utterance_and_reports_its_progress():
    progress = []
    with triton(says(2)) as server:
        async with AsyncSpeechClient(server.url) as tts:
            audio = await tts.synthesize("Hi.", DesignedVoice("a storyteller"), on_progress=progress.append)
        assert server.calls[0].request.model_name == "qwen3_tts_voice_design"
    assert audio.duration_s == 0.16
    assert progress == pytest.approx([0.08, 0.16])


async def test_leaving_the_block_cancels():
    with triton(speaks_until_cancelled) as server:
        async with AsyncSpeechClient(server.url) as tts:
            async with tts.stream("A long story.") as speech:
                await anext(speech)
            assert await reaches(server.cancelled)
            with pytest.raises(Cancelled):
                await anext(speech)


async def test_cancelling_the_task_cancels_the_speech_and_stays_a_cancelled_task():
    with triton(speaks_until_cancelled) as server:
        async with AsyncSpeechClient(server.url) as tts:
            heard = asyncio.Event()
            task = asyncio.create_task(tts.synthesize("A story.", on_progress=lambda _: heard.set()))
            await heard.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await reaches(server.cancelled)


@pytest.mark.parametrize("stop", [lambda tts, speech: speech.cancel(), lambda tts, speech: tts.close()])
async def test_another_task_may_stop_it_and_the_one_that_waits_hears_of_it(stop):
    with triton(speaks_until_cancelled) as server:
        async with AsyncSpeechClient(server.url) as tts, tts.stream("A long story.") as speech:
            await anext(speech)
            waiting = asyncio.create_task(anext(speech))
            await asyncio.sleep(0)
            stopping = stop(tts, speech)
            if stopping is not None:
                await stopping
            with pytest.raises(Cancelled):
                await waiting


async def test_a_finished_stream_lets_the_server_hang_up_first():
    hung_up_on = []

    def lingers(call):
        yield from says(1)(call)
        hung_up_on.append(call.wait_until_gone(0.1))

    with triton(lingers) as server:
        async with AsyncSpeechClient(server.url) as tts:
            await tts.synthesize("Hi.")
    assert hung_up_on == [False]


async def test_silence_beyond_the_limit_is_an_error_that_names_it():
    with triton(speaks_until_cancelled) as server:
        async with AsyncSpeechClient(server.url) as tts:
            await tts.server_info()  # connected, so that the limit is spent in silence
            with pytest.raises(ServerUnavailable, match=r"no audio for 0\.2 s") as caught:
                await tts.synthesize("Hi.", timeout_s=0.2)
        assert caught.value.request_id == server.calls[0].request.id
        assert await reaches(server.cancelled)


async def test_a_dead_port_is_an_error_that_names_the_url(dead_url):
    async with AsyncSpeechClient(dead_url) as tts:
        with pytest.raises(ServerUnavailable, match=dead_url):
            await tts.synthesize("Hi.")
        with pytest.raises(ServerUnavailable, match=dead_url):
            await tts.server_info()


def refuses(call):
    yield chunk(0)
    raise RefusalError(StatusCode.INVALID_ARGUMENT, "no such thing")


def is_full(call):
    yield error_text("Exceeds maximum queue size")


def skips_a_chunk(call):
    yield chunk(0)
    yield final(chunk(2, finish_reason="stop"))


def stops_short(call):
    yield chunk(0)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (refuses, InvalidRequest),
        (is_full, Overloaded),
        (skips_a_chunk, EngineFailed),
        (stops_short, EngineFailed),
    ],
)
async def test_errors_are_those_of_the_waiting_client(script, kind):
    with triton(script) as server:
        async with AsyncSpeechClient(server.url) as tts:
            with pytest.raises(kind) as awaited:
                await tts.synthesize("Hi.")
        with SpeechClient(server.url) as tts, pytest.raises(kind) as waited:
            tts.synthesize("Hi.")
    assert str(awaited.value) == str(waited.value)


async def test_a_batch_keeps_its_order():
    def as_long_as_told(call):
        yield from says(int(call.text))(call)

    with triton(as_long_as_told) as server:
        async with AsyncSpeechClient(server.url) as tts:
            audios = await tts.synthesize_batch(["3", "1", "2"], concurrency=2)
    assert [audio.num_frames for audio in audios] == [3, 1, 2]


async def test_a_failure_in_a_batch_is_raised_at_once_and_cancels_the_rest():
    first_speaks = threading.Event()

    def second_fails(call):
        if call.text == "First.":
            yield chunk(0)
            first_speaks.set()
            call.wait_until_gone()
        else:
            first_speaks.wait(PATIENCE_S)
            raise RefusalError(StatusCode.INVALID_ARGUMENT, "no such language")

    with triton(second_fails) as server:
        async with AsyncSpeechClient(server.url) as tts:
            with pytest.raises(InvalidRequest, match="no such language"):
                await tts.synthesize_batch(["First.", "Second."])
            assert await reaches(server.cancelled)


async def test_nothing_is_left_in_the_loop():
    with triton(speaks_until_cancelled) as server:
        async with AsyncSpeechClient(server.url) as tts:
            async with tts.stream("A long story.") as speech:
                await anext(speech)
            await tts.server_info()
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_server_is_asked_about_itself_with_the_key(tls):
    with triton(says(1), api_key="s3cr3t", credentials=tls.server_credentials) as server:
        async with AsyncSpeechClient(server.url, api_key="s3cr3t", root_certificates=tls.certificate) as tts:
            assert (await tts.server_info()).version == "2.51.0"
            assert await tts.is_ready("qwen3_tts_custom_voice")
            assert "seed" in await tts.model_inputs("qwen3_tts_custom_voice")
            assert (await tts.synthesize("Hi.")).num_frames == 1


async def test_a_client_made_before_the_loop_works_in_it():
    with triton(says(1)) as server:
        tts = await asyncio.to_thread(AsyncSpeechClient, server.url)
        async with tts:
            assert (await tts.synthesize("Hi.")).num_frames == 1


async def test_a_stream_outside_its_block_says_so():
    async with AsyncSpeechClient() as tts:
        with pytest.raises(RuntimeError, match="inside its block"):
            await tts.stream("Hi.").read()


async def test_a_closed_client_says_that_it_was_closed():
    with triton(says(1)) as server:
        tts = AsyncSpeechClient(server.url)
        await tts.close()
        with pytest.raises(ServerUnavailable, match="this client was closed"):
            await tts.synthesize("Hi.")
        assert server.calls == []


async def test_a_batch_of_which_none_may_be_spoken_is_refused():
    async with AsyncSpeechClient("localhost:1") as tts:
        with pytest.raises(ValueError, match="concurrency is 0; it must be 1 or more"):
            await tts.synthesize_batch(["Hi."], concurrency=0)
