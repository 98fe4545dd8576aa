"""`SpeechClient` against a scripted server: what is heard, what ends a stream, and who finds out."""

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest
from grpc import StatusCode

from fakes.triton_server import (
    PATIENCE_S,
    RefusalError,
    chunk,
    error_text,
    final,
    samples_of,
    says,
    triton,
)
from qwen3_tts_client import (
    AsyncSpeechClient,
    Cancelled,
    DesignedVoice,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    ServerUnavailable,
    SpeechClient,
    SpeechError,
    UnknownVoice,
)
from qwen3_tts_client.connection import _CHANNEL_OPTIONS
from real_server import wait_until


@contextmanager
def speaking(script, **facts):
    """A server with this script, and a client of it."""
    with triton(script, **facts) as server, SpeechClient(server.url) as tts:
        yield server, tts


def speaks_until_cancelled(call):
    yield chunk(0)
    call.wait_until_gone()


def falls_silent(call):
    yield chunk(0)
    call.wait_until_gone()


def refuses(code, message):
    def script(call):
        yield chunk(0)
        raise RefusalError(code, message)

    return script


def responds(*responses):
    def script(call):
        yield from responses

    return script


def test_chunks_arrive_one_by_one_and_the_stream_knows_how_it_ended():
    with speaking(says(3)) as (_, tts):
        with tts.stream("Good morning.") as speech:
            chunks = list(speech)
        assert [part.dtype for part in chunks] == [np.float32] * 3
        np.testing.assert_array_equal(
            np.concatenate(chunks), np.concatenate([samples_of(i) for i in range(3)])
        )
        assert (speech.sample_rate, speech.num_frames, speech.finish_reason) == (24000, 3, "stop")
        assert speech.time_to_first_audio_s > 0
        assert speech.received_s == pytest.approx(3 * 0.08)
        assert list(speech) == []


def test_the_first_chunk_is_heard_before_the_last_is_spoken():
    heard = threading.Event()

    def waits_to_be_heard(call):
        yield chunk(0)
        yield chunk(1, finish_reason="stop" if heard.wait(PATIENCE_S) else "")
        yield final()

    with speaking(waits_to_be_heard) as (_, tts), tts.stream("Good morning.") as speech:
        next(speech)
        heard.set()
        assert speech.read().samples.size == 1920


def test_synthesize_returns_the_whole_utterance_and_reports_its_progress():
    progress = []
    with speaking(says(2)) as (_, tts):
        audio = tts.synthesize("Good morning.", on_progress=progress.append)
    assert progress == pytest.approx([0.08, 0.16])
    assert (audio.duration_s, audio.finish_reason, audio.num_frames) == (0.16, "stop", 2)


def test_a_chunk_may_be_changed_in_place():
    with speaking(says(1)) as (_, tts), tts.stream("Hi.") as speech:
        loud = next(speech)
        loud *= 0.5


def test_the_final_flag_may_ride_on_the_last_chunk():
    with triton(responds(final(chunk(0, finish_reason="stop")))) as server, SpeechClient(server.url) as tts:
        assert tts.synthesize("Hi.").num_frames == 1


def test_a_last_chunk_without_samples_only_says_how_it_ended():
    nothing = np.zeros(0, np.float32)
    script = responds(chunk(0), chunk(1, samples=nothing, finish_reason="length"), final())
    with speaking(script) as (_, tts), tts.stream("Hi.") as speech:
        assert [len(part) for part in speech] == [1920]
        assert speech.finish_reason == "length"


def test_a_response_beyond_grpcs_default_limit_gets_through():
    minute = np.zeros(60 * 24000, np.float32)  # 5.8 MB
    script = responds(chunk(0, samples=minute, finish_reason="stop"), final())
    with speaking(script) as (_, tts):
        assert tts.synthesize("Hi.").duration_s == 60


@pytest.mark.parametrize(
    ("voice", "model", "inputs"),
    [
        (None, "qwen3_tts_custom_voice", {"text"}),
        ("ryan", "qwen3_tts_custom_voice", {"text", "speaker"}),
        (DesignedVoice("a storyteller"), "qwen3_tts_voice_design", {"text", "instruct"}),
    ],
)
def test_the_voice_chooses_the_model(voice, model, inputs):
    with speaking(says(1)) as (server, tts):
        tts.synthesize("Hi.", voice)
        assert server.calls[0].request.model_name == model
        assert server.calls[0].inputs.keys() == inputs


def test_leaving_the_block_cancels():
    with speaking(speaks_until_cancelled) as (server, tts):
        with tts.stream("A long story.") as speech:
            next(speech)
        assert server.cancelled.wait(PATIENCE_S)
        with pytest.raises(Cancelled, match="closed after 1 chunk"):
            next(speech)


def test_an_exception_in_the_block_cancels_too():
    with speaking(speaks_until_cancelled) as (server, tts):

        def stumble():
            with tts.stream("A long story.") as speech:
                next(speech)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            stumble()
        assert server.cancelled.wait(PATIENCE_S)


def test_a_finished_stream_lets_the_server_hang_up_first():
    hung_up_on = []

    def lingers(call):
        yield from says(1)(call)
        hung_up_on.append(call.wait_until_gone(0.1))

    with speaking(lingers) as (_, tts):
        tts.synthesize("Hi.")
    assert hung_up_on == [False]


def test_a_stream_speaks_once():
    with speaking(says(1)) as (server, tts):
        with tts.stream("Hi.") as speech:
            speech.read()
        with pytest.raises(RuntimeError, match="a stream speaks once"), speech:
            pass
        assert len(server.calls) == 1


def test_another_thread_may_cancel_and_the_one_that_waits_hears_of_it():
    with speaking(speaks_until_cancelled) as (_, tts), tts.stream("A long story.") as speech:
        next(speech)
        threading.Timer(0, speech.cancel).start()
        with pytest.raises(Cancelled):
            next(speech)


def test_a_stream_cancelled_before_its_block_sends_nothing():
    with speaking(says(1)) as (server, tts):
        speech = tts.stream("Hi.")
        speech.cancel()
        with pytest.raises(Cancelled), speech:
            pass
        assert server.calls == []


def test_closing_the_client_ends_its_streams():
    with triton(speaks_until_cancelled) as server:
        tts = SpeechClient(server.url)
        with tts.stream("A long story.") as speech:
            next(speech)
            tts.close()
            with pytest.raises(Cancelled):
                next(speech)


def test_a_stream_outside_its_block_says_so():
    with SpeechClient() as tts, pytest.raises(RuntimeError, match="inside its block"):
        list(tts.stream("Hi."))


def test_silence_beyond_the_limit_is_an_error_that_names_it():
    with triton(falls_silent) as server, SpeechClient(server.url, timeout_s=60) as tts:
        tts.server_info()  # connected, so that the limit is spent in silence
        with pytest.raises(ServerUnavailable, match=r"no audio for 0\.2 s") as caught:
            tts.synthesize("Hi.", timeout_s=0.2)
        assert caught.value.request_id == server.calls[0].request.id
        assert server.cancelled.wait(PATIENCE_S)


def waits_in_the_queue(server, call):
    """Until the caller has asked twice whether anybody is there."""
    wait_until(lambda: server.num_health_checks == 2, "the caller asks")
    yield from says(1)(call)


def falls_silent_in_the_queue(server, call):
    yield final() if call.wait_until_gone() else chunk(0)


@asynccontextmanager
async def queueing(client, script, **limits):
    """A client, of either kind, of a server whose script knows it."""
    with triton(lambda call: script(server, call)) as server:
        if client is SpeechClient:
            with SpeechClient(server.url, **limits) as tts:
                yield server, lambda: asyncio.to_thread(tts.synthesize, "Hi.")
        else:
            async with AsyncSpeechClient(server.url, **limits) as tts:
                yield server, lambda: tts.synthesize("Hi.")


BOTH = pytest.mark.parametrize("client", [SpeechClient, AsyncSpeechClient])


@BOTH
async def test_the_first_chunk_is_waited_for_longer_while_the_server_lives(client):
    async with queueing(client, waits_in_the_queue, timeout_s=0.2, queue_timeout_s=60) as (_, speak):
        assert (await speak()).num_frames == 1


@BOTH
@pytest.mark.parametrize(
    ("queue_timeout_s", "is_alive", "told", "num_asked"),
    [
        (0.0, True, r"no audio for 0\.1 s, the limit between chunks", 0),
        (0.25, True, r"no audio for 0\.35 s, the limit for the first chunk", 3),
        (60.0, False, r"no audio for 0\.1 s, and the server does not say that it is alive", 1),
    ],
)
async def test_the_first_chunk_is_not_waited_for_without_end(
    client, queue_timeout_s, is_alive, told, num_asked
):
    limits = {"timeout_s": 0.1, "queue_timeout_s": queue_timeout_s}
    async with queueing(client, falls_silent_in_the_queue, **limits) as (server, speak):
        server.is_alive = is_alive
        with pytest.raises(ServerUnavailable, match=told):
            await speak()
        assert server.num_health_checks == num_asked
        assert await asyncio.to_thread(server.cancelled.wait, PATIENCE_S)


@BOTH
async def test_between_two_chunks_there_is_no_queue(client):
    async with queueing(client, lambda _, call: falls_silent(call), timeout_s=0.2, queue_timeout_s=60) as (
        server,
        speak,
    ):
        with pytest.raises(ServerUnavailable, match=r"no audio for 0\.2 s, the limit between chunks"):
            await speak()
        assert server.num_health_checks == 0


def test_a_dead_port_is_an_error_that_names_the_url(dead_url):
    with SpeechClient(dead_url) as tts:
        with pytest.raises(ServerUnavailable, match=dead_url):
            tts.synthesize("Hi.")
        with pytest.raises(ServerUnavailable, match=dead_url):
            tts.server_info()


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (StatusCode.INVALID_ARGUMENT, "top_k=-1 is out of range", InvalidRequest),
        (StatusCode.NOT_FOUND, "no voice named 'grandpa'", UnknownVoice),
        (
            StatusCode.UNAVAILABLE,
            "Request for unknown model: 'x' has no available versions",
            ServerUnavailable,
        ),
        (StatusCode.UNAVAILABLE, "Exceeds maximum queue size", Overloaded),
        (StatusCode.UNAVAILABLE, "Request timeout expired", Overloaded),
        (StatusCode.RESOURCE_EXHAUSTED, "no slot is free", Overloaded),
        (StatusCode.CANCELLED, "the server is shutting down", Cancelled),
        (StatusCode.INTERNAL, "CUDA error", EngineFailed),
        (StatusCode.UNKNOWN, "something else", EngineFailed),
    ],
)
def test_a_refusal_keeps_its_words_and_finds_its_kind(code, message, kind):
    with speaking(refuses(code, message)) as (server, tts):
        with pytest.raises(SpeechError) as caught, tts.stream("Hi.") as speech:
            list(speech)
        assert type(caught.value) is kind
        assert message in str(caught.value)
        assert code.name not in str(caught.value)
        assert caught.value.request_id == server.calls[0].request.id
        with pytest.raises(kind):
            next(speech)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Exceeds maximum queue size", Overloaded),
        ("Request for unknown model: 'x' is not found", ServerUnavailable),
        ("unexpected inference input 'instruct' for model 'qwen3_tts_base'", InvalidRequest),
        ("'qwen3_tts_base' version 1 is not at ready state", ServerUnavailable),
        (
            "Server is stopping, scheduler for model has stopped accepting new inference requests",
            ServerUnavailable,
        ),
        ("Stream removed (Data frame with END_STREAM flag received)", ServerUnavailable),
        ("anything else", EngineFailed),
        ("WHATEVER: it is no code", EngineFailed),
    ],
)
def test_an_error_without_a_code_is_known_by_its_words(message, kind):
    with speaking(responds(error_text(message))) as (_, tts), pytest.raises(kind) as caught:
        tts.synthesize("Hi.")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "INVALID_ARGUMENT: language is 'Exceeds maximum queue size'; it must be one of Auto",
            InvalidRequest,
        ),
        ("INVALID_ARGUMENT: speaker is 'is not at ready state'", InvalidRequest),
        ("NOT_FOUND: no voice is called 'unknown model'", UnknownVoice),
        ("UNAVAILABLE: Exceeds maximum queue size", Overloaded),
    ],
)
def test_a_callers_own_words_do_not_pass_for_tritons(message, kind):
    with speaking(responds(error_text(message))) as (_, tts), pytest.raises(SpeechError) as caught:
        tts.synthesize("Hi.")
    assert type(caught.value) is kind


def test_an_ensembles_error_is_known_by_the_code_of_its_step():
    told = "in ensemble 'qwen3_tts_voice_clone', INVALID_ARGUMENT: ref_audio is no audio"
    with speaking(responds(error_text(told))) as (_, tts), pytest.raises(InvalidRequest) as caught:
        tts.synthesize("Hi.")
    assert str(caught.value) == "ref_audio is no audio"


def test_whoever_is_refused_hears_the_stream_end_and_cancels_nothing():
    """tritonserver 2.51 can crash when a cancellation meets the end of its stream."""
    is_gone = []

    def script(call):
        yield error_text("INVALID_ARGUMENT: no")
        is_gone.append(call.wait_until_gone(limit_s=0.2))

    with speaking(script) as (_, tts), pytest.raises(InvalidRequest):
        tts.synthesize("Hi.")
    assert is_gone == [False]


def test_a_model_the_server_lacks_is_named():
    with (
        speaking(says(1), models=["qwen3_tts_custom_voice"]) as (_, tts),
        pytest.raises(ServerUnavailable, match="unknown model: 'qwen3_tts_voice_design'"),
    ):
        tts.synthesize("Hi.", DesignedVoice("a storyteller"))


@pytest.mark.parametrize(
    ("responses", "complaint"),
    [
        ([chunk(0), chunk(2, finish_reason="stop"), final()], "chunk 2 arrived where chunk 1 was due"),
        ([chunk(0), final()], "after 1 chunks without a finish reason"),
        ([chunk(0)], "after 1 chunks without a finish reason"),
        ([final()], "after 0 chunks without a finish reason"),
        ([], "after 0 chunks without a finish reason"),
    ],
    ids=["gap", "final without reason", "end without final", "only final", "nothing"],
)
def test_audio_with_a_hole_or_without_an_end_is_never_passed_off_as_speech(responses, complaint):
    with speaking(responds(*responses)) as (_, tts), pytest.raises(EngineFailed, match=complaint):
        tts.synthesize("Hi.")


def test_a_response_of_some_other_model_is_an_error():
    stranger = chunk(0)
    stranger.infer_response.outputs[0].name = "waveform"
    with (
        speaking(responds(stranger)) as (_, tts),
        pytest.raises(EngineFailed, match="lacks the output 'audio'"),
    ):
        tts.synthesize("Hi.")


def test_a_batch_keeps_its_order_whoever_finishes_first():
    last_is_done = threading.Event()

    def last_first(call):
        length = int(call.text)
        if length < 3:
            assert last_is_done.wait(PATIENCE_S)
        yield from says(length)(call)
        last_is_done.set()

    with speaking(last_first) as (server, tts):
        audios = tts.synthesize_batch(["1", "2", "3"], voice=["a", "b", "c"], language="English")
        assert [audio.num_frames for audio in audios] == [1, 2, 3]
        speakers = {call.text: call.inputs["speaker"][4:].decode() for call in server.calls}
        assert speakers == {"1": "a", "2": "b", "3": "c"}


def test_a_failure_in_a_batch_is_raised_at_once_and_cancels_the_rest():
    first_speaks = threading.Event()

    def second_fails(call):
        if call.text == "First.":
            yield chunk(0)
            first_speaks.set()
            call.wait_until_gone()
        else:
            first_speaks.wait(PATIENCE_S)
            raise RefusalError(StatusCode.INVALID_ARGUMENT, "no such language")

    with speaking(second_fails) as (server, tts):
        with pytest.raises(InvalidRequest, match="no such language"):
            tts.synthesize_batch(["First.", "Second."])
        assert server.cancelled.wait(PATIENCE_S)


def test_a_batch_keeps_no_more_in_flight_than_asked():
    in_flight, most = [], []

    def counts(call):
        in_flight.append(call)
        most.append(len(in_flight))
        yield chunk(0)
        in_flight.remove(call)
        yield final(chunk(1, finish_reason="stop"))

    with speaking(counts) as (_, tts):
        assert len(tts.synthesize_batch(["Hi."] * 12, concurrency=2)) == 12
    assert max(most) <= 2


def test_a_batch_of_nothing_is_nothing():
    with SpeechClient() as tts:
        assert tts.synthesize_batch([]) == []


def test_voices_that_do_not_match_the_texts_are_refused():
    with SpeechClient() as tts, pytest.raises(InvalidRequest, match="1 voices for 2 texts"):
        tts.synthesize_batch(["One.", "Two."], voice=["ryan"])


def test_one_client_speaks_on_many_threads_and_leaves_none_behind():
    before = set(threading.enumerate())
    with speaking(says(2)) as (_, tts):
        tts.synthesize_batch(["Hi."] * 8)
    with speaking(speaks_until_cancelled) as (_, tts), tts.stream("A long story.") as speech:
        next(speech)
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("qwen3-tts")]
    for thread in left:  # gRPC's own end a moment later
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread


def test_the_server_is_asked_about_itself():
    with speaking(says(1), models=["qwen3_tts_custom_voice"]) as (_, tts):
        assert tts.server_info().version == "2.51.0"
        assert tts.is_ready("qwen3_tts_custom_voice")
        assert not tts.is_ready("qwen3_tts_voice_design")
        assert tts.model_inputs("qwen3_tts_custom_voice")["seed"] == "INT64"


def test_a_server_with_grpcs_defaults_is_not_pinged_more_often_than_it_takes():
    """`grpc.http2.min_recv_ping_interval_without_data_ms`: the third ping within it ends the connection."""
    assert dict(_CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] > 300_000


def test_the_api_key_and_headers_travel_as_metadata():
    with triton(says(1), api_key="s3cr3t") as server:
        with SpeechClient(server.url, api_key="s3cr3t", headers={"X-Tenant": "blue"}) as tts:
            tts.synthesize("Hi.")
        assert server.calls[0].metadata["x-tenant"] == "blue"
        assert "triton_grpc_error" not in server.calls[0].metadata  # docs/decisions/0018
        tenants = iter(["red", "green"])
        with SpeechClient(server.url, api_key="s3cr3t", headers=lambda: {"X-Tenant": next(tenants)}) as tts:
            tts.synthesize("Hi.")
            tts.synthesize("Hi.")
        assert [call.metadata["x-tenant"] for call in server.calls[1:]] == ["red", "green"]
        with SpeechClient(server.url) as tts:
            for ask in (tts.server_info, lambda: tts.synthesize("Hi.")):
                with pytest.raises(InvalidRequest, match="protocol is restricted"):
                    ask()


def test_speech_over_tls_needs_the_right_authority(tls):
    with triton(says(1), credentials=tls.server_credentials) as server:
        with SpeechClient(server.url, root_certificates=tls.certificate) as tts:
            assert tts.synthesize("Hi.").num_frames == 1
        with SpeechClient(server.url, ssl=True) as tts, pytest.raises(ServerUnavailable):
            tts.synthesize("Hi.")


def test_speech_over_mutual_tls_shows_its_own_certificate(tls):
    with triton(says(1), credentials=tls.mutual_server_credentials) as server:
        certificates = {"private_key": tls.private_key, "certificate_chain": tls.certificate}
        with SpeechClient(server.url, root_certificates=tls.certificate, **certificates) as tts:
            assert tts.synthesize("Hi.").num_frames == 1
        with (
            SpeechClient(server.url, root_certificates=tls.certificate) as tts,
            pytest.raises(ServerUnavailable),
        ):
            tts.synthesize("Hi.")


def test_a_closed_client_says_that_it_was_closed():
    with triton(says(1)) as server:
        tts = SpeechClient(server.url)
        tts.close()
        with pytest.raises(ServerUnavailable, match="this client was closed"):
            tts.synthesize("Hi.")
        assert server.calls == []


def test_a_batch_of_which_none_may_be_spoken_is_refused():
    with (
        SpeechClient("localhost:1") as tts,
        pytest.raises(ValueError, match="concurrency is 0; it must be 1"),
    ):
        tts.synthesize_batch(["Hi."], concurrency=0)
