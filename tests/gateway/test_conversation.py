"""`/v1/audio/speech/stream` as a voice agent uses it, in front of a scripted Triton."""

import json
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from socket import SHUT_RDWR

import numpy as np
import pytest
from grpc import StatusCode
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fakes.triton_server import PATIENCE_S, RefusalError, chunk, final, says
from gateway_server import running_gateway, settings
from qwen3_tts_gateway.key_file import KeyFile, KeyTerms
from qwen3_tts_gateway.routes import conversation
from qwen3_tts_gateway.routes.conversation import MOST_MESSAGE_BYTES, MOST_TEXT_BYTES, Patience
from real_server import wait_until

PCM = {"voice": "ryan", "response_format": "pcm", "stream_audio": True}


class Agent:
    """A voice agent at its end of the socket."""

    def __init__(self, socket):
        self.socket = socket

    def send(self, kind, **fields):
        self.socket.send(json.dumps({"type": kind, **fields}))

    def configure(self, **fields):
        self.send("session.config", **(PCM | fields))

    def say(self, *texts):
        for text in texts:
            self.send("input.text", text=text)
        self.send("input.done")

    def hear(self):
        """The next event, or bytes."""
        message = self.socket.recv(PATIENCE_S)
        return message if isinstance(message, bytes) else json.loads(message)

    def hear_until(self, kind):
        """Everything up to the first event of a type, in order."""
        heard = [self.hear()]
        while isinstance(heard[-1], bytes) or heard[-1]["type"] != kind:
            heard.append(self.hear())
        return heard

    def hear_a_sound(self):
        """That Triton speaks is certain from then on."""
        while not isinstance(self.hear(), bytes):
            pass

    def hear_the_end(self):
        """How the server closes."""
        with pytest.raises(ConnectionClosed) as closed:
            self.hear()
        return closed.value.rcvd.code, closed.value.rcvd.reason


@contextmanager
def call(gateway, **options):
    url = gateway.url.replace("http", "ws") + "/v1/audio/speech/stream"
    with connect(url, **options) as socket:
        yield Agent(socket)


@pytest.fixture
def agent(gateway):
    """One whose session is configured."""
    with call(gateway) as agent:
        agent.configure()
        yield agent


@pytest.fixture
def patience(monkeypatch):
    """Sets limits for the conversations to come."""
    return lambda **limits: monkeypatch.setattr(conversation, "PATIENCE", Patience(**limits))


def sentences_in(heard):
    return [event["sentence_text"] for event in events(heard, "audio.start")]


def events(heard, kind):
    return [event for event in heard if not isinstance(event, bytes) and event["type"] == kind]


def audio_in(heard):
    return b"".join(piece for piece in heard if isinstance(piece, bytes))


def speaks_until_cancelled(call):
    yield chunk(0)
    call.wait_until_gone()


def test_a_sentence_begins_sounds_and_ends_and_so_does_the_utterance(agent):
    agent.say("Hello there.")
    heard = agent.hear_until("session.done")
    place = {"utterance_index": 0, "sentence_index": 0}
    audio = audio_in(heard)
    assert heard[0] == {
        "type": "audio.start",
        **place,
        "sentence_text": "Hello there.",
        "format": "pcm",
        "sample_rate": 24000,
    }
    assert [type(piece) for piece in heard[1:-2]] == [bytes] * 3
    assert heard[-2] == {"type": "audio.done", **place, "total_bytes": len(audio), "error": False}
    assert heard[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": 1}


def test_the_audio_is_that_of_the_http_route(agent, http):
    agent.say("Hello there.")
    body = {"input": "Hello there.", "voice": "ryan", "response_format": "pcm"}
    assert audio_in(agent.hear_until("session.done")) == http.post("/v1/audio/speech", json=body).content


def test_without_streaming_each_sentence_is_one_file(gateway, http):
    with call(gateway) as agent:
        agent.send("session.config", voice="ryan")
        agent.say("Hello. ", "Good bye.")
        heard = agent.hear_until("session.done")
    body = {"input": "Hello.", "voice": "ryan", "response_format": "wav"}
    file = http.post("/v1/audio/speech", json=body).content
    assert [piece for piece in heard if isinstance(piece, bytes)] == [file, file]
    assert heard[0]["format"] == "wav"


def test_the_session_speaks_as_it_is_configured(gateway, fake_triton):
    with call(gateway) as agent:
        agent.configure(
            model="qwen3-tts",
            voice="vivian",
            language="English",
            instructions="whisper",
            seed=7,
            sample_rate=8000,
            speed=2.0,
            some_day="a field we do not know",
        )
        agent.say("Hello.")
        heard = agent.hear_until("session.done")
    [spoken] = fake_triton.calls
    assert spoken.text == "Hello."
    assert [spoken.string(name) for name in ("speaker", "language", "instruct")] == [
        *("vivian", "English", "whisper")
    ]
    assert spoken.array("seed").item() == 7
    assert heard[0]["sample_rate"] == 8000
    assert len(audio_in(heard)) == pytest.approx(2 * 3 * 640 / 2, rel=0.1)


def test_a_field_of_the_configuration_that_is_null_is_absent(gateway, fake_triton):
    nulls = dict.fromkeys(
        ["speed", "task_type", "ref_audio", "split_granularity", "word_timestamps", "model"]
    )
    with call(gateway) as agent:
        agent.configure(**nulls, voice=None, speaker="vivian")
        agent.say("Hello.")
        assert events(agent.hear_until("session.done"), "error") == []
    assert [spoken.string("speaker") for spoken in fake_triton.calls] == ["vivian"]


def test_livekit_speaks_with_a_saved_voice(gateway, fake_triton):
    """The configuration is that of its Baseten plugin."""
    with call(gateway, additional_headers={"Authorization": "Api-Key any"}) as agent:
        agent.send(
            "session.config",
            task_type="Base",
            response_format="pcm",
            stream_audio=True,
            speed=1.0,
            voice="anna",
            language="Auto",
            max_new_tokens=2048,
            initial_codec_chunk_frames=1,
            x_vector_only_mode=False,
            timestamp_type="word",
            timestamp_transport_strategy="sync",
        )
        agent.say()
        assert agent.hear()["type"] == "session.done"
        agent.say("Hel", "lo.")
        assert len(audio_in(agent.hear_until("session.done"))) == 3 * 3840
    [spoken] = fake_triton.calls
    assert (spoken.request.model_name, spoken.string("voice")) == ("qwen3_tts_base", "anna")


def test_sentences_are_spoken_one_after_the_other(agent, fake_triton):
    agent.say("One. Tw", "o!", " Three")
    heard = agent.hear_until("session.done")
    assert sentences_in(heard) == ["One.", "Two!", "Three"]
    assert [event["sentence_index"] for event in events(heard, "audio.done")] == [0, 1, 2]
    assert heard[-1]["total_sentences"] == 3
    assert [call.text for call in fake_triton.calls] == ["One.", "Two!", "Three"]


def test_the_first_sentence_sounds_while_the_second_is_being_written(agent):
    agent.send("input.text", text="First. And th")
    assert sentences_in(agent.hear_until("audio.done")) == ["First."]
    agent.say("en this.")
    assert sentences_in(agent.hear_until("session.done")) == ["And then this."]


@pytest.mark.parametrize(
    ("granularity", "sentences"),
    [("none", ["Well, yes. No."]), ("sentence", ["Well, yes.", "No."]), ("clause", ["Well,", "yes.", "No."])],
)
def test_the_caller_chooses_where_to_split(gateway, granularity, sentences):
    with call(gateway) as agent:
        agent.configure(split_granularity=granularity)
        agent.say("Well, yes. No.")
        assert sentences_in(agent.hear_until("session.done")) == sentences


def test_an_utterance_without_text_keeps_the_session_alive(agent, fake_triton):
    agent.say()
    assert agent.hear() == {"type": "session.done", "utterance_index": 0, "total_sentences": 0}
    agent.say("", " … ")
    assert agent.hear() == {"type": "session.done", "utterance_index": 1, "total_sentences": 0}
    assert not fake_triton.calls


def test_one_utterance_follows_the_other_however_early_it_is_written(agent):
    agent.say("One. Two.")
    agent.say("Three.")
    agent.say()
    assert sentences_in(agent.hear_until("session.done")) == ["One.", "Two."]
    heard = agent.hear_until("session.done")
    assert {event["utterance_index"] for event in heard if not isinstance(event, bytes)} == {1}
    assert sentences_in(heard) == ["Three."]
    assert agent.hear()["utterance_index"] == 2


def test_another_configuration_is_for_the_utterances_that_follow(agent, fake_triton):
    agent.say("One.")
    agent.configure(voice="vivian")
    agent.say("Two.")
    agent.hear_until("session.done")
    agent.hear_until("session.done")
    assert [call.string("speaker") for call in fake_triton.calls] == ["ryan", "vivian"]


def test_an_interruption_reaches_triton_and_what_was_left_to_say_is_not_said(agent, fake_triton):
    fake_triton.script = speaks_until_cancelled
    agent.say("One. Two.")
    agent.say("Three.")
    agent.send("input.text", text="Four. Fi")
    agent.hear_a_sound()
    agent.send("response.cancel")
    assert agent.hear_until("response.cancelled")[-1] == {"type": "response.cancelled", "utterance_index": 2}
    assert fake_triton.cancelled.wait(PATIENCE_S)
    fake_triton.script = says(1)
    agent.say("Never mind.")
    heard = agent.hear_until("session.done")
    assert sentences_in(heard) == ["Never mind."]
    assert heard[-1] == {"type": "session.done", "utterance_index": 3, "total_sentences": 1}
    assert [call.text for call in fake_triton.calls] == ["One.", "Never mind."]


def test_an_interruption_of_silence_is_answered_as_well(agent):
    agent.send("response.cancel")
    assert agent.hear() == {"type": "response.cancelled", "utterance_index": 0}
    agent.say("Hello.")
    assert agent.hear()["utterance_index"] == 1


def drop(socket):
    """Gone without a word, as a laptop that is shut."""
    socket.socket.shutdown(SHUT_RDWR)


@pytest.mark.parametrize("hang_up", [ClientConnection.close, drop])
def test_a_caller_who_hangs_up_stops_the_speech(gateway, fake_triton, hang_up):
    fake_triton.script = speaks_until_cancelled
    with call(gateway) as agent:
        agent.configure()
        agent.say("A long story. And more.")
        agent.hear_a_sound()
        hang_up(agent.socket)
        assert fake_triton.cancelled.wait(PATIENCE_S)
    assert len(fake_triton.calls) == 1


def test_callers_who_hang_up_leave_nothing_behind(gateway, fake_triton, http):
    http.post(
        "/v1/audio/speech", json={"input": "Hello."}
    ).raise_for_status()  # Triton is connected from now on
    num_tasks = gateway.num_tasks()
    fake_triton.script = speaks_until_cancelled
    for stage in range(40):
        with call(gateway) as agent:
            for step in (agent.configure, lambda: agent.say("One. Two."), agent.hear)[: stage % 4]:
                step()
            drop(agent.socket)
    wait_until(lambda: gateway.num_tasks() <= num_tasks, "all of them are gone")


def test_a_caller_who_takes_nothing_loses_the_slot(gateway, fake_triton, patience):
    patience(take_s=0.2)
    mebibyte = np.zeros(1 << 19, np.float32)  # as PCM

    def never_stops(call):
        for index in range(64):
            yield chunk(index, samples=mebibyte)
        call.wait_until_gone()

    fake_triton.script = never_stops
    with call(gateway, max_queue=1, max_size=None, compression=None) as agent:
        agent.configure()
        agent.say("A long story.")
        assert fake_triton.cancelled.wait(PATIENCE_S)
        drop(agent.socket)


def test_an_error_in_one_sentence_is_told_and_the_next_one_is_spoken(agent, fake_triton):
    def fails_at_two(call):
        if call.text == "Two.":
            yield chunk(0)
            raise RefusalError(StatusCode.INVALID_ARGUMENT, "no such word")
        yield from says(1)(call)

    fake_triton.script = fails_at_two
    agent.say("One. Two. Three.")
    heard = agent.hear_until("session.done")
    [error] = events(heard, "error")
    assert "no such word" in error.pop("message")
    assert error == {
        "type": "error",
        "code": "invalid_value",
        "param": None,
        "utterance_index": 0,
        "sentence_index": 1,
    }
    assert sentences_in(heard) == ["One.", "Two.", "Three."]
    ends = events(heard, "audio.done")
    assert [end["error"] for end in ends] == [False, True, False]
    assert sum(end["total_bytes"] for end in ends) == len(audio_in(heard)) == 3 * 3840


def test_each_sentence_counts_against_the_limits_of_the_key(fake_triton):
    limits = settings(triton_grpc_port=fake_triton.port, requests_per_minute=1)
    with running_gateway(limits) as gateway, call(gateway) as agent:
        agent.configure()
        agent.say("One. Two.")
        heard = agent.hear_until("session.done")
    assert [error["code"] for error in events(heard, "error")] == ["rate_limit_exceeded"]
    assert [call.text for call in fake_triton.calls] == ["One."]


def test_a_recording_is_opened_once_for_a_session_and_that_counts_as_well(fake_triton):
    recording = {"ref_audio": "UklGRg==", "x_vector_only_mode": True, "voice": None}
    limits = settings(triton_grpc_port=fake_triton.port, requests_per_minute=3)
    with running_gateway(limits) as gateway, call(gateway) as agent:
        agent.configure(**recording)
        agent.say("One. Two.")
        assert events(agent.hear_until("session.done"), "error") == []
        agent.configure(**recording)
        assert agent.hear()["code"] == "rate_limit_exceeded"
    assert [call.request.model_name for call in fake_triton.calls] == ["qwen3_tts_base"] * 2


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        ("{", None, "Invalid JSON"),
        ('"\\ud800"', None, "Invalid JSON"),
        ("[" * 100_000, None, "Invalid JSON"),
        (b"\0", None, "binary"),
        ("[]", None, "object"),
        ("{}", "type", "input.done"),
        ('{"type": "input.sing"}', "type", "input.done"),
        ('{"type": "input.text"}', "text", "required"),
        ('{"type": "input.text", "text": 7}', "text", "string"),
        ('{"type": "session.config", "speed": 9}', "speed", "0.25 to 4.0"),
        ('{"type": "session.config", "speed": NaN}', "speed", "0.25 to 4.0"),
        ('{"type": "session.config", "response_format": "ogg"}', "response_format", "mp3, opus"),
        ('{"type": "session.config", "split_granularity": "word"}', "split_granularity", "'sentence'"),
        ('{"type": "session.config", "word_timestamps": true}', "word_timestamps", "False"),
        ('{"type": "session.config", "task_type": "Base"}', "voice", "ref_audio"),
        ('{"type": "session.config", "ref_audio": "?", "x_vector_only_mode": true}', "ref_audio", "base64"),
    ],
)
def test_a_message_that_makes_no_sense_is_answered_and_the_session_goes_on(agent, message, param, says):
    agent.socket.send(message)
    error = agent.hear()
    assert (error["type"], error["code"], error["param"]) == ("error", "invalid_value", param)
    assert says in error["message"]
    agent.say("Hello.")
    assert agent.hear_until("session.done")[-1]["total_sentences"] == 1


def test_a_sentence_that_is_too_long_is_an_error_of_its_own(agent):
    agent.say("a" * 5000 + ". Short.")
    heard = agent.hear_until("session.done")
    assert [error["param"] for error in events(heard, "error")] == ["text"]
    assert [end["error"] for end in events(heard, "audio.done")] == [True, False]


def test_a_configuration_within_an_utterance_is_refused(agent):
    agent.send("input.text", text="Hel")
    agent.configure()
    assert "input.done" in agent.hear()["message"]
    agent.say("lo.")
    assert sentences_in(agent.hear_until("session.done")) == ["Hello."]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 1007),
        (b"\0", 1003),
        ('{"type": "input.text", "text": "Hi."}', 1008),
        ('{"type": "response.cancel"}', 1008),
        ('{"type": "session.config", "speed": 9}', 1008),
        ('{"type": "session.close"}', 1000),
    ],
)
def test_whatever_else_comes_in_the_place_of_the_first_configuration_ends_the_session(gateway, message, code):
    with call(gateway) as agent:
        agent.socket.send(message)
        if code != 1000:
            assert agent.hear()["type"] == "error"
        assert agent.hear_the_end()[0] == code


def test_without_triton_there_is_no_session(gateway, fake_triton):
    def is_away(_):
        raise RefusalError(StatusCode.UNAVAILABLE, "gone fishing")

    fake_triton.answers["voices"] = is_away
    with call(gateway) as agent:
        agent.configure()
        assert agent.hear()["code"] == "unavailable"
        assert agent.hear_the_end()[0] == 1011


def test_a_session_that_is_not_configured_in_time_ends(gateway, patience):
    patience(config_s=0.05)
    with call(gateway) as agent:
        assert agent.hear()["message"] == "session.config did not come within 0.05 s"
        assert agent.hear_the_end() == (1008, "session.config did not come within 0.05 s")


def test_a_session_without_messages_ends_but_never_within_a_speech(gateway, fake_triton, patience):
    patience(idle_s=0.2)
    may_go_on = threading.Event()

    def takes_a_long_breath(call):
        yield chunk(0)
        assert not may_go_on.wait(0.5)
        yield from [chunk(1, finish_reason="stop"), final()]

    fake_triton.script = takes_a_long_breath
    with call(gateway) as agent:
        agent.configure()
        agent.say("Hello.")
        assert agent.hear_until("session.done")[-1]["total_sentences"] == 1
        assert agent.hear_the_end() == (1001, "no message came for 0.2 s")


def test_a_session_is_closed_on_request_after_what_is_complete_was_spoken(agent):
    agent.say("One.")
    agent.send("input.text", text="Two. Thr")
    agent.send("session.close")
    assert sentences_in(agent.hear_until("session.done")) == ["One."]
    assert sentences_in(agent.hear_until("audio.done")) == ["Two."]
    assert agent.hear_the_end() == (1000, "")


@pytest.fixture
def close(gateway):
    """The gateway's port closes: from then on it ends what it has begun."""
    return lambda: gateway.loop.call_soon_threadsafe(gateway.gateway.shutdown.has_begun.set)


def test_a_session_that_has_nothing_to_say_is_closed_when_the_gateway_is_stopped(agent, close):
    agent.say("Hello.")
    agent.hear_until("session.done")
    close()
    assert agent.hear_the_end() == (1012, "this gateway is being stopped; connect again")


def test_the_utterance_being_spoken_is_the_last_when_the_gateway_is_stopped(agent, fake_triton, close):
    go_on = threading.Event()

    def pauses(call):
        yield chunk(0)
        assert go_on.wait(PATIENCE_S)
        yield from [chunk(1, finish_reason="stop"), final()]

    fake_triton.script = pauses
    agent.say("One. Two.")
    agent.say("Three.")
    agent.hear_a_sound()
    close()
    refusal = agent.hear_until("error")[-1]
    assert (refusal["code"], refusal["utterance_index"]) == ("shutting_down", 1)
    agent.say("Four.")
    assert "connect again" in agent.hear_until("error")[-1]["message"]
    go_on.set()
    heard = agent.hear_until("session.done")
    assert sentences_in(heard) == ["Two."]
    assert [end["error"] for end in events(heard, "audio.done")] == [False, False]
    assert agent.hear_the_end()[0] == 1012


def test_the_utterance_being_written_is_the_last_when_the_gateway_is_stopped(agent, close):
    agent.send("input.text", text="Hel")
    agent.say()
    agent.hear_until("session.done")
    agent.send("input.text", text="One. Tw")
    agent.hear_until("audio.done")
    close()
    agent.say("o.")
    assert sentences_in(agent.hear_until("session.done")) == ["Two."]
    assert agent.hear_the_end()[0] == 1012


def test_a_message_that_is_too_long_ends_the_session(agent):
    agent.configure(ref_audio="A" * MOST_MESSAGE_BYTES)
    assert agent.hear()["code"] == "too_large"
    assert agent.hear_the_end() == (1009, "the message is longer than 4 MiB")


def test_more_text_than_anybody_will_listen_to_ends_the_session(agent, fake_triton):
    fake_triton.script = speaks_until_cancelled
    agent.say("Hello.")
    agent.hear_a_sound()
    for _ in range(2):
        agent.say("好。" * (MOST_TEXT_BYTES // 12 + 1))
    assert agent.hear_until("error")[-1]["code"] == "too_large"
    assert agent.hear_the_end() == (1009, "more than 128 KiB of text wait to be spoken")
    assert fake_triton.cancelled.wait(PATIENCE_S)


def test_text_that_was_spoken_does_not_count(agent, fake_triton):
    fake_triton.script = says(1)
    sentence = "a" * 4000 + ". "
    for _ in range(MOST_TEXT_BYTES // 4000 + 1):
        agent.send("input.text", text=sentence)
        assert agent.hear_until("audio.done")[-1]["error"] is False


def test_more_utterances_than_can_wait_end_the_session(agent, fake_triton):
    fake_triton.script = speaks_until_cancelled
    agent.say("A long story.")
    for _ in range(256):
        agent.say()
    agent.hear_until("error")
    assert agent.hear_the_end()[0] == 1008


def test_a_bug_is_logged_and_told_without_details(gateway, fake_triton, monkeypatch, caplog):
    def slips(*_):
        raise KeyError("a secret")

    monkeypatch.setattr(gateway.gateway.narrator, "utterance", slips)
    with call(gateway) as agent:
        agent.configure()
        agent.say("Hello.")
        agent.hear_until("audio.start")
        assert agent.hear_the_end() == (1011, "something went wrong; the server's log knows what")
    assert "a secret" in caplog.text


@pytest.fixture
def guarded(fake_triton, tmp_path):
    """A gateway with keys, and its key file."""
    path = tmp_path / "keys.json"
    file = KeyFile(path)
    now = datetime.now(timezone.utc)
    keys = {
        scope: file.create(KeyTerms(name=scope, scopes=[scope], expires_at=None), now)
        for scope in ("synth", "voices")
    }
    with running_gateway(settings(triton_grpc_port=fake_triton.port, api_keys_file=str(path))) as gateway:
        yield gateway, file, keys


@pytest.mark.parametrize(
    ("name", "form"), [("Authorization", "Bearer {}"), ("Authorization", "Api-Key {}"), ("X-API-Key", "{}")]
)
def test_a_key_comes_in_a_header(guarded, name, form):
    gateway, _, keys = guarded
    with call(gateway, additional_headers={name: form.format(keys["synth"])}) as agent:
        agent.configure()
        agent.say("Hello.")
        assert agent.hear_until("session.done")
        assert agent.socket.subprotocol is None


def test_a_browser_sends_its_key_as_a_subprotocol_and_it_is_not_sent_back(guarded):
    gateway, _, keys = guarded
    with call(gateway, subprotocols=["qwen3-tts", f"key.{keys['synth']}"]) as agent:
        assert agent.socket.subprotocol == "qwen3-tts"
        assert keys["synth"] not in str(agent.socket.response.headers)
        agent.configure()
        agent.say("Hello.")
        assert agent.hear_until("session.done")


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (None, 401, "invalid_api_key"),
        ("wrong", 401, "invalid_api_key"),
        ("voices", 403, "insufficient_scope"),
    ],
)
@pytest.mark.parametrize("way", ["header", "subprotocol"])
def test_without_the_right_key_there_is_no_handshake(guarded, key, status, code, way):
    gateway, _, keys = guarded
    secret = keys.get(key, key)
    options = {
        "header": {"additional_headers": {"X-API-Key": secret or ""}},
        "subprotocol": {"subprotocols": ["qwen3-tts", *([f"key.{secret}"] if secret else [])]},
    }
    with pytest.raises(InvalidStatus) as refused, call(gateway, **options[way]):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["code"] == code


def test_a_key_that_is_revoked_within_a_session_does_not_speak_again(guarded, fake_triton):
    gateway, file, keys = guarded
    with call(gateway, additional_headers={"X-API-Key": keys["synth"]}) as agent:
        agent.configure()
        agent.say("Hello.")
        agent.hear_until("session.done")
        file.revoke("synth")
        agent.send("input.text", text="Hello again.")
        assert agent.hear()["code"] == "invalid_api_key"
        assert agent.hear_the_end()[0] == 1008
    assert len(fake_triton.calls) == 1


def test_a_key_that_is_revoked_within_an_utterance_speaks_none_of_its_other_sentences(guarded, fake_triton):
    gateway, file, keys = guarded
    with call(gateway, additional_headers={"X-API-Key": keys["synth"]}) as agent:
        agent.configure()
        agent.send("input.text", text="One. Tw")
        agent.hear_until("audio.done")
        file.revoke("synth")
        agent.send("input.text", text="o. Three.")
        assert agent.hear()["code"] == "invalid_api_key"
        assert agent.hear_the_end()[0] == 1008
    assert [spoken.text for spoken in fake_triton.calls] == ["One."]


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://["])
def test_pages_from_elsewhere_may_not_speak_where_no_key_is_needed(gateway, origin):
    with pytest.raises(InvalidStatus) as refused, call(gateway, origin=origin):
        pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("origins", [("https://app.example",), ("*",)])
def test_pages_of_allowed_origins_may_speak(fake_triton, origins):
    allowing = settings(triton_grpc_port=fake_triton.port, cors_origins=origins)
    with running_gateway(allowing) as gateway, call(gateway, origin="https://app.example") as agent:
        agent.configure()
        agent.say()
        assert agent.hear()["type"] == "session.done"


def test_pages_of_the_gateway_itself_may_speak(gateway):
    with call(gateway, origin=gateway.url) as agent:
        agent.configure()
        agent.say()
        assert agent.hear()["type"] == "session.done"
