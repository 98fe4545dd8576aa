"""Cloned, saved and designed voices, and the names that stand for them."""

import asyncio
import io
import json
import threading
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import soundfile
from grpc import StatusCode
from tritonclient.grpc import service_pb2

from fakes.triton_server import (
    MODEL_INPUTS,
    PATIENCE_S,
    SPEAKERS,
    RefusalError,
    Shelf,
    answered,
    hears,
    says,
    triton,
)
from qwen3_tts_client import (
    AsyncSpeechClient,
    BuiltIn,
    Cancelled,
    ClonedVoice,
    DesignedVoice,
    EngineFailed,
    InvalidRequest,
    Saved,
    SavedVoice,
    ServerUnavailable,
    Speaker,
    SpeechClient,
    model_of,
)
from qwen3_tts_client.finding import PROMPT_LIFETIME_S, SPEAKERS_LIFETIME_S, VoiceFinder

GRANDPA = ClonedVoice(b"RIFF grandpa, as he was", "Once upon a time.")
TIMBRE = ClonedVoice(b"RIFF grandpa, as he was", x_vector_only=True)


@contextmanager
def speaking(**facts):
    """A server with all models, and a client of it; for both clients there is `meeting`."""
    with triton(says(1), models=tuple(MODEL_INPUTS), **facts) as server, SpeechClient(server.url) as tts:
        yield server, tts


def operations(server):
    return [call.string("operation") for call in server.questions if call.request.model_name == "voices"]


def recordings(server):
    return [call.inputs["ref_audio"][4:] for call in server.questions if "ref_audio" in call.inputs]


@pytest.mark.parametrize("transcript", [None, "", "  "])
def test_a_clone_without_a_transcript_says_what_would_help(transcript):
    with pytest.raises(InvalidRequest, match=r"needs the transcript .* x_vector_only"):
        ClonedVoice("me.wav", transcript)


def test_a_clone_shows_no_megabytes():
    assert "RIFF" not in repr(GRANDPA)


async def test_a_recording_is_heard_once_and_then_spoken_with(meeting):
    async with meeting() as (server, tts):
        for _ in range(2):
            await tts.synthesize("Hi.", GRANDPA)
        (question,) = server.questions
        assert question.request.model_name == "create_voice"
        assert question.inputs["ref_audio"][4:] == GRANDPA.recording
        assert question.string("ref_text") == GRANDPA.transcript
        assert not question.array("x_vector_only").item()
        heard = hears(question)
        for call in server.calls:
            assert call.request.model_name == "qwen3_tts_base"
            assert call.inputs.keys() == {"text", "speaker_embedding", "ref_codes", "ref_text"}
            np.testing.assert_array_equal(call.array("speaker_embedding")[0], heard["speaker_embedding"])
            np.testing.assert_array_equal(call.array("ref_codes")[0], heard["ref_codes"])
            assert call.string("ref_text") == GRANDPA.transcript


async def test_an_x_vector_goes_alone(meeting):
    async with meeting() as (server, tts):
        await tts.synthesize("Hi.", TIMBRE)
        assert server.questions[0].inputs.keys() == {"ref_audio", "x_vector_only"}
        assert server.calls[0].inputs.keys() == {"text", "speaker_embedding"}


@pytest.mark.parametrize(
    "other",
    [
        ClonedVoice(GRANDPA.recording + b" later", GRANDPA.transcript),
        ClonedVoice(GRANDPA.recording, "Once upon another time."),
        TIMBRE,
    ],
    ids=["same beginning", "same recording", "same recording, x-vector only"],
)
def test_voices_that_differ_at_all_never_share_a_prompt(other):
    with speaking() as (server, tts):
        for voice in (GRANDPA, other, GRANDPA, other):
            tts.synthesize("Hi.", voice)
        assert len(server.questions) == 2
        first, second, *again = [call.inputs for call in server.calls]
        assert first != second
        assert again == [first, second]


def test_a_file_and_its_content_are_the_same_recording(tmp_path):
    path = tmp_path / "grandpa.wav"
    path.write_bytes(GRANDPA.recording)
    with speaking() as (server, tts):
        for recording in (path, str(path), GRANDPA.recording):
            tts.synthesize("Hi.", ClonedVoice(recording, GRANDPA.transcript))
        assert recordings(server) == [GRANDPA.recording]
        path.write_bytes(b"RIFF grandma")
        tts.synthesize("Hi.", ClonedVoice(path, GRANDPA.transcript))
        assert recordings(server) == [GRANDPA.recording, b"RIFF grandma"]


def test_the_least_recently_used_prompt_is_forgotten_first():
    finder = VoiceFinder(most_prompts=2)
    a, b, c = (ClonedVoice(content, x_vector_only=True) for content in (b"a", b"b", b"c"))
    assert [asks(finder, voice) for voice in (a, b, a, c)] == [True, True, False, True]
    assert [asks(finder, voice) for voice in (a, b)] == [False, True]


HEARD = {"speaker_embedding": np.zeros(8, "f4"), "ref_codes": np.zeros((0, 16), "i4")}


def asks(finder, voice):
    """Whether finding this voice takes a question of one of the models."""
    conversation, num_asked, answer = finder.finding(voice), 0, None
    with suppress(StopIteration):
        while question := conversation.send(answer):
            if question.rpc == "ModelConfig":
                answer = service_pb2.ModelConfigResponse()
                continue
            num_asked += 1
            outputs = {"voices": {"result": json.dumps({"speakers": SPEAKERS})}, "create_voice": HEARD}
            answer = answered(outputs[question.request.model_name])
    return num_asked > 0


@pytest.mark.parametrize(
    ("voice", "lifetime_s"), [("ryan", SPEAKERS_LIFETIME_S), (GRANDPA, PROMPT_LIFETIME_S)], ids=repr
)
def test_what_was_found_is_asked_for_anew_after_a_while(voice, lifetime_s):
    now_s = 100.0
    finder = VoiceFinder(clock=lambda: now_s)
    assert asks(finder, voice)
    now_s += lifetime_s - 1
    assert not asks(finder, voice)
    now_s += 1
    assert asks(finder, voice)
    assert not asks(finder, voice)


def is_away(call):
    raise RefusalError(StatusCode.UNAVAILABLE, "the server is being restarted")


async def test_a_server_that_was_away_is_asked_anew(meeting):
    async with meeting() as (server, tts):
        await tts.synthesize("Hi.", "ryan")
        await tts.synthesize("Hi.", GRANDPA)
        server.script = is_away
        with pytest.raises(ServerUnavailable):
            await tts.synthesize("Hi.", "ryan")
        server.script = says(1)
        await tts.synthesize("Hi.", "ryan")
        await tts.synthesize("Hi.", GRANDPA)
        assert operations(server) == ["speakers"] * 2
        assert recordings(server) == [GRANDPA.recording] * 2


async def test_a_server_that_could_not_be_asked_is_asked_anew(meeting):
    async with meeting() as (server, tts):
        await tts.synthesize("Hi.", "ryan")
        shelf, server.answers["voices"] = server.answers["voices"], is_away
        with pytest.raises(ServerUnavailable):
            await tts.voices.list()
        server.answers["voices"] = shelf
        await tts.synthesize("Hi.", "ryan")
        assert operations(server) == ["speakers", "list", "speakers"]


async def test_a_recording_is_heard_anew_for_a_checkpoint_that_somebody_else_loaded(meeting):
    async with meeting() as (server, tts):
        await tts.synthesize("Hi.", GRANDPA)
        with SpeechClient(server.url) as other:
            other.models.load("qwen3_tts_base", checkpoint="Qwen/Qwen3-TTS-12Hz-0.6B-Base")
        for _ in range(2):
            await tts.synthesize("Hi.", GRANDPA)
        assert recordings(server) == [GRANDPA.recording] * 2


async def test_a_batch_hears_each_recording_once(meeting):
    async with meeting() as (server, tts):
        await tts.synthesize_batch(["One.", "Two.", "Three."], GRANDPA)
        await tts.synthesize_batch(["One.", "Two."], ["ryan", "grandpa"])
        assert recordings(server) == [GRANDPA.recording]
        assert operations(server) == ["speakers"]
        assert len(server.calls) == 5


@pytest.mark.parametrize(
    ("name", "model", "voice_input"),
    [
        ("ryan", "qwen3_tts_custom_voice", "speaker"),
        ("VIVIAN", "qwen3_tts_custom_voice", "speaker"),
        ("", "qwen3_tts_custom_voice", "speaker"),
        ("grandpa", "qwen3_tts_base", "voice"),
        ("ryan's brother", "qwen3_tts_base", "voice"),
        ("grandpa(2)+grandma(1)", "qwen3_tts_base", "voice"),
    ],
)
async def test_a_name_is_a_built_in_speakers_or_a_saved_voices(meeting, name, model, voice_input):
    async with meeting() as (server, tts):
        await tts.synthesize("Hi.", name)
        (call,) = server.calls
        assert call.request.model_name == model
        assert call.inputs.keys() == {"text", voice_input}
        assert call.string(voice_input) == name


async def test_the_built_in_speakers_are_asked_for_once(meeting):
    async with meeting() as (server, tts):
        for name in ("ryan", "grandpa", "ryan"):
            await tts.synthesize("Hi.", name)
        assert operations(server) == ["speakers"]


@pytest.mark.parametrize("voice", [None, DesignedVoice("a storyteller")])
def test_a_voice_without_a_name_asks_nothing(voice):
    with speaking() as (server, tts):
        tts.synthesize("Hi.", voice)
        assert server.questions == []


async def test_every_name_is_a_speakers_where_nobody_keeps_voices_until_somebody_does(meeting):
    async with meeting(models=["qwen3_tts_custom_voice", "qwen3_tts_base"]) as (server, tts):
        await tts.synthesize("Hi.", "grandpa")
        server.models = MODEL_INPUTS
        await tts.synthesize("Hi.", "grandpa")
        assert [call.request.model_name for call in server.calls] == [
            "qwen3_tts_custom_voice",
            "qwen3_tts_base",
        ]


async def test_a_voice_is_saved_listed_described_spoken_with_and_deleted(meeting):
    grandpa = SavedVoice(
        name="grandpa",
        created_at="2025-01-31T12:00:00Z",
        model="tiny",
        x_vector_only=False,
        ref_text="Once upon a time.",
        metadata={"born": 1931, "häufig": True},
    )
    async with meeting() as (server, tts):
        await tts.voices.save("grandpa", GRANDPA, metadata=grandpa.metadata)
        saving = server.questions[-1]
        assert saving.inputs.keys() == {
            "operation",
            "name",
            "speaker_embedding",
            "ref_codes",
            "ref_text",
            "metadata",
        }
        assert await tts.voices.list() == [grandpa]
        assert await tts.voices.describe("grandpa") == grandpa
        await tts.voices.delete("grandpa")
        assert await tts.voices.list() == []


async def test_an_x_vector_is_saved_as_one(meeting):
    async with meeting() as (server, tts):
        await tts.voices.save("grandpa", TIMBRE)
        assert server.questions[-1].inputs.keys() == {"operation", "name", "speaker_embedding"}
        assert (await tts.voices.describe("grandpa")).x_vector_only


async def test_a_prompt_that_is_there_already_is_saved_without_listening_again(meeting):
    async with meeting() as (server, tts):
        prompt = await tts.find(GRANDPA)
        await tts.voices.save("grandpa", prompt)
        assert len(recordings(server)) == 1
        assert (await tts.voices.describe("grandpa")).ref_text == GRANDPA.transcript


@pytest.mark.parametrize(
    ("voice", "found", "model"),
    [
        ("Ryan", BuiltIn("Ryan"), "qwen3_tts_custom_voice"),
        ("grandpa", Saved("grandpa"), "qwen3_tts_base"),
        (DesignedVoice("an old man"), DesignedVoice("an old man"), "qwen3_tts_voice_design"),
        (None, None, "qwen3_tts_custom_voice"),
    ],
    ids=["speaker", "saved", "designed", "none"],
)
async def test_what_was_found_speaks_without_being_looked_for_again(meeting, voice, found, model):
    async with meeting() as (server, tts):
        assert await tts.find(voice) == found
        num_questions = len(server.questions)
        await tts.synthesize("Hi.", found)
        assert model_of(found) == server.calls[0].request.model_name == model
        assert len(server.questions) == num_questions


async def test_a_voice_that_is_not_there_is_named(meeting):
    async with meeting() as (server, tts):
        for ask in (tts.voices.describe, tts.voices.delete):
            with pytest.raises(InvalidRequest, match="no voice is saved as 'grandma'") as caught:
                await ask("grandma")
            assert caught.value.request_id == server.questions[-1].request.id


async def test_a_designed_voice_is_kept_as_the_sample_sounds(meeting):
    async with meeting(says(3)) as (server, tts):
        sample = await tts.voices.design(
            "narrator", instruct="a storyteller", sample_text="Once.", language="English", seed=7
        )
        assert sample.num_frames == 3
        (designing,) = server.calls
        assert designing.request.model_name == "qwen3_tts_voice_design"
        assert designing.inputs.keys() == {"text", "language", "instruct", "seed"}
        hearing, saving = server.questions
        heard, sample_rate = soundfile.read(io.BytesIO(hearing.inputs["ref_audio"][4:]))
        np.testing.assert_allclose(heard, sample.samples, atol=1e-4)
        assert sample_rate == 24000
        assert hearing.string("ref_text") == saving.string("ref_text") == "Once."
        assert [voice.name for voice in await tts.voices.list()] == ["narrator"]


async def test_speakers_and_languages_are_those_of_the_checkpoint(meeting):
    async with meeting() as (_, tts):
        ryan, vivian = await tts.voices.speakers()
        assert ryan == Speaker("Ryan", "a man in a hurry", "English")
        assert vivian.native_language == "Chinese"
        assert await tts.voices.languages() == ["Auto", "Chinese", "English"]


async def test_metadata_that_is_no_json_is_refused_before_anything_is_asked(meeting):
    async with meeting() as (server, tts):
        with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
            await tts.voices.save("grandpa", GRANDPA, metadata={"born": object()})
        assert server.questions == []


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ("what?", "voices answered list with no JSON"),
        ("[]", "voices answered without 'voices'"),
        ('{"voices": [{"name": "grandpa"}]}', "voices answered without 'created_at'"),
    ],
)
def test_an_answer_nobody_understands_is_the_servers_fault(result, complaint):
    answers = {"voices": lambda call: {"result": result}}
    with speaking(answers=answers) as (_, tts), pytest.raises(EngineFailed, match=complaint):
        tts.voices.list()


def test_what_a_newer_server_tells_besides_is_left_out():
    shelf = Shelf()
    with speaking(answers={"create_voice": hears, "voices": shelf}) as (_, tts):
        tts.voices.save("grandpa", GRANDPA)
        shelf.voices["grandpa"]["mood"] = "grumpy"
        assert tts.voices.describe("grandpa").name == "grandpa"


def hears_nothing(call):
    raise RefusalError(StatusCode.INVALID_ARGUMENT, "in ensemble 'create_voice', ref_audio is no audio")


async def test_a_recording_that_cannot_be_heard_is_never_spoken_with(meeting):
    async with meeting(answers={"create_voice": hears_nothing}) as (server, tts):
        with pytest.raises(InvalidRequest, match="ref_audio is no audio") as caught:
            await tts.synthesize("Hi.", GRANDPA)
        assert caught.value.request_id == server.questions[0].request.id
        assert server.calls == []


async def test_a_recording_that_is_not_there_is_an_os_error(meeting, tmp_path):
    async with meeting() as (server, tts):
        with pytest.raises(FileNotFoundError, match=r"nobody\.wav"):
            await tts.synthesize("Hi.", ClonedVoice(tmp_path / "nobody.wav", "Hi."))
        assert server.questions == []


async def test_instructions_for_a_recorded_voice_are_refused(meeting):
    async with meeting() as (server, tts):
        with pytest.raises(InvalidRequest, match="takes no 'instruct'"):
            await tts.synthesize("Hi.", GRANDPA, instruct="whisper")
        assert server.calls == []


class SlowEar:
    """`create_voice` that takes its time."""

    def __init__(self):
        self.listens, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, call):
        self.listens.set()
        self.may_answer.wait(PATIENCE_S)
        return hears(call)

    @contextmanager
    def heard_then(self, act):
        """Another thread acts as soon as this listens; then comes the answer."""

        def interfere():
            self.listens.wait(PATIENCE_S)
            act()
            self.may_answer.set()

        thread = threading.Thread(target=interfere)
        thread.start()
        yield
        thread.join()


def test_a_stream_cancelled_while_its_voice_is_found_never_speaks():
    ear = SlowEar()
    with speaking(answers={"create_voice": ear}) as (server, tts):
        speech = tts.stream("Hi.", GRANDPA)
        with ear.heard_then(speech.cancel), pytest.raises(Cancelled), speech:
            pass
        assert server.calls == []


def test_closing_the_client_ends_the_search_for_a_voice():
    ear = SlowEar()
    with speaking(answers={"create_voice": ear}) as (server, tts):
        with ear.heard_then(tts.close), pytest.raises(Cancelled):
            tts.synthesize("Hi.", GRANDPA)
        assert server.calls == []


async def test_closing_the_awaiting_client_ends_the_search_for_a_voice():
    ear = SlowEar()
    with triton(says(1), models=MODEL_INPUTS, answers={"create_voice": ear}) as server:
        tts = AsyncSpeechClient(server.url)
        searching = asyncio.create_task(tts.synthesize("Hi.", GRANDPA))
        await asyncio.to_thread(ear.listens.wait, PATIENCE_S)
        await tts.close()
        with pytest.raises(Cancelled):
            await searching
        ear.may_answer.set()
        assert server.calls == []


async def test_cancelling_a_task_that_looks_for_a_voice_stays_a_cancelled_task():
    ear = SlowEar()
    with triton(says(1), models=MODEL_INPUTS, answers={"create_voice": ear}) as server:
        async with AsyncSpeechClient(server.url) as tts:
            searching = asyncio.create_task(tts.synthesize("Hi.", GRANDPA))
            await asyncio.to_thread(ear.listens.wait, PATIENCE_S)
            searching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await searching
            ear.may_answer.set()
