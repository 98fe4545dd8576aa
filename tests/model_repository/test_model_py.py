"""model.py under Triton's hands: what comes back for a request, and that every request ends exactly once."""

import base64
import io
import threading
import wave
from contextlib import contextmanager

import numpy as np
import pytest

from fakes import triton_python_backend_utils as pb_utils
from fakes.triton_python_backend_utils import TritonError
from python_backend import MODEL_REPOSITORY, code_and_words, declared_outputs, load_model_py, read_config
from qwen3_tts_engine.errors import Cancelled, EngineFailed, InvalidRequest, Overloaded
from qwen3_tts_engine.metrics import OUTCOMES
from qwen3_tts_engine.profile import PROFILES
from qwen3_tts_engine.request import GenerationDefaults
from qwen3_tts_engine.sequence import Chunk
from qwen3_tts_engine.triton.errors import TABLE, outcome, triton_error
from qwen3_tts_engine.triton.metrics import PublishedMetrics
from qwen3_tts_engine.triton.reading import RequestReader, RowRequest
from qwen3_tts_engine.triton.responses import LARGE_FRAMES, Courier, ResponseStream

MODEL = "qwen3_tts_custom_voice"
FRAME = 1920
HELLO = {"text": ["Hello world."], "seed": [1], "max_frames": [20]}
TWO_ROWS = {"text": ["Hello world.", "Ready."], "seed": [1, 2], "max_frames": [9, 20]}
# Always the likeliest code, and the likelier for having been spoken: it repeats itself up to the cap.
ENDLESS = {
    "text": ["Hello world."],
    "do_sample": [False],
    "subtalker_do_sample": [False],
    "repetition_penalty": [0.05],
    "max_frames": [2000],
}


def published(name, **labels):
    return pb_utils.page.read(f"qwen3_tts_{name}", model=MODEL, version="1", **labels)


def outcomes(model):
    """How a model's requests ended, once it has let go; what never happened is left out."""
    model.finalize()
    counts = {label: published("requests_total", outcome=label).value for label in OUTCOMES}
    return {label: count for label, count in counts.items() if count}


class Somebody:
    """A caller who has heard something and listens until they leave."""

    def __init__(self, model, num_rows=1):
        self._left = threading.Event()
        self.call = model.call(is_cancelled=self._left.is_set, **rows_of_endless(num_rows))
        model.execute(self.call)
        self.call.sender.wait_for(num_rows)

    def leave(self):
        self._left.set()
        assert self.call.error == (TritonError.CANCELLED, "the caller left")


def rows_of_endless(num_rows):
    return {name: values * num_rows for name, values in ENDLESS.items()}


@contextmanager
def executing(model, *calls):
    """`execute` in a thread of its own, as it may block; it has returned when the block is left."""
    thread = threading.Thread(target=model.execute, args=calls)
    thread.start()
    yield
    thread.join(pb_utils.PATIENCE_S)
    assert not thread.is_alive()


# --- what a caller hears ----------------------------------------------------------------------------------


def test_a_model_names_its_task():
    assert load_model_py(MODEL_REPOSITORY / MODEL).TritonPythonModel.task == "custom_voice"


def test_an_utterance_comes_as_growing_chunks_and_the_last_says_why(talker):
    chunks = talker.ask(**HELLO).chunks
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    lengths = [len(chunk.samples) // FRAME for chunk in chunks[:-1]]
    assert lengths[0] == 1
    assert 1 < max(lengths) <= 12
    assert {*lengths} <= {*PROFILES["balanced"].ramp}
    heard = np.cumsum([len(chunk.samples) for chunk in chunks])
    assert [chunk.num_frames for chunk in chunks] == (heard // FRAME).tolist()
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
    assert {(chunk.sample_rate, chunk.row, chunk.encoded_audio) for chunk in chunks} == {(24_000, 0, b"")}


def test_an_utterance_that_ends_by_itself_says_so(talker):
    chunks = talker.ask(text=["Hello world."], seed=[1]).chunks
    assert chunks[-1].finish_reason == "stop"


def test_an_utterance_of_one_frame_is_one_chunk(talker):
    [chunk] = talker.ask(**HELLO | {"max_frames": [1]}).chunks
    assert (len(chunk.samples), chunk.num_frames, chunk.finish_reason) == (FRAME, 1, "length")


def test_without_streaming_there_is_exactly_one_response_and_it_sounds_the_same(talker):
    streamed = talker.ask(**HELLO)
    [whole] = talker.ask(**HELLO, stream=[False]).chunks
    np.testing.assert_array_equal(whole.samples, streamed.samples)
    assert (whole.chunk_index, whole.num_frames, whole.finish_reason) == (0, 20, "length")


@pytest.mark.parametrize("stream", [True, False])
def test_pcm16_is_the_same_audio_rounded(talker, stream):
    plain = talker.ask(**HELLO, stream=[stream])
    encoded = talker.ask(**HELLO, stream=[stream], audio_encoding=["pcm16_base64"])
    assert len(encoded.samples) == 0
    pcm = b"".join(base64.b64decode(chunk.encoded_audio, validate=True) for chunk in encoded.chunks)
    np.testing.assert_array_equal(np.frombuffer(pcm, "<i2"), np.rint(plain.samples * 32767))


@pytest.mark.parametrize("stream", [True, False])
def test_every_wav_chunk_is_a_file_of_its_own(talker, stream):
    plain = talker.ask(**HELLO, stream=[stream])
    encoded = talker.ask(**HELLO, stream=[stream], audio_encoding=["wav_base64"])
    pieces = []
    for chunk in encoded.chunks:
        assert len(chunk.samples) == 0
        with wave.open(io.BytesIO(base64.b64decode(chunk.encoded_audio, validate=True))) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
            pieces.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
    np.testing.assert_array_equal(np.concatenate(pieces), np.rint(plain.samples * 32767))


def test_rows_are_told_apart_and_final_waits_for_the_last(talker):
    chunks = talker.ask(**TWO_ROWS).chunks
    for row, frames in enumerate([9, 20]):
        own = [chunk for chunk in chunks if chunk.row == row]
        assert [chunk.chunk_index for chunk in own] == list(range(len(own)))
        assert [bool(chunk.finish_reason) for chunk in own] == [False] * (len(own) - 1) + [True]
        assert own[-1].num_frames == frames
    assert chunks[-1].row == 1


def test_a_row_sounds_as_it_does_alone(talker):
    together = talker.ask(**TWO_ROWS).chunks
    for row in range(2):
        alone = talker.ask(**{name: values[row : row + 1] for name, values in TWO_ROWS.items()})
        in_company = np.concatenate([chunk.samples for chunk in together if chunk.row == row])
        np.testing.assert_array_equal(in_company, alone.samples)


def test_rows_that_do_not_stream_come_whole_one_response_each(talker):
    chunks = talker.ask(**TWO_ROWS, stream=[False, False]).chunks
    assert [(chunk.row, chunk.num_frames, len(chunk.samples)) for chunk in chunks] == [
        (0, 9, 9 * FRAME),
        (1, 20, 20 * FRAME),
    ]


def test_requests_of_one_execute_are_answered_each_through_its_own_sender(talker):
    calls = [talker.call(**HELLO | {"seed": [seed], "max_frames": [seed + 3]}) for seed in range(4)]
    talker.execute(*calls)
    assert [call.chunks[-1].num_frames for call in calls] == [3, 4, 5, 6]


def test_the_same_seed_sounds_the_same_and_another_or_none_does_not(talker):
    say = {"text": ["Hello world."], "max_frames": [20]}
    first, again, other = (talker.ask(**say, seed=[seed]).samples for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    unseeded = [talker.ask(**say).samples for _ in range(2)]
    assert not np.array_equal(*unseeded)


def test_an_empty_optional_input_is_as_good_as_none(talker):
    empty = {"language": [""], "speaker": [""], "instruct": [""], "audio_encoding": [""]}
    zero_length = {"temperature": np.zeros((1, 0), np.float32), "top_k": np.zeros((1, 0), np.int32)}
    plain = talker.ask(**HELLO)
    np.testing.assert_array_equal(talker.ask(**HELLO, **empty, **zero_length).samples, plain.samples)


# --- reading a request ------------------------------------------------------------------------------------


def rows_of(**inputs):
    types = {"text": object, "speaker": object, "temperature": np.float32, "top_p": np.float32}
    tensors = [
        pb_utils.Tensor(name, np.array(values, types[name]).reshape(-1, 1)) for name, values in inputs.items()
    ]
    reader = RequestReader("custom_voice", GenerationDefaults())
    return reader.read(pb_utils.InferenceRequest(tensors, pb_utils.ResponseSender({})))


def test_a_number_is_the_decimal_its_caller_wrote():
    [row] = rows_of(text=[b"Hi."], temperature=[0.8], top_p=[0.1])
    assert (row.speech.talker.temperature, row.speech.talker.top_p) == (0.8, 0.1)


def test_each_row_has_its_own_values_and_the_checkpoints_for_what_is_absent():
    first, second = rows_of(text=[b"One.", b"Two."], temperature=[0.5, 1.5], speaker=[b"ryan", b""])
    assert (first.speech.text, first.speech.talker.temperature, first.speech.speaker) == ("One.", 0.5, "ryan")
    assert (second.speech.text, second.speech.talker.temperature, second.speech.speaker) == (
        "Two.",
        1.5,
        None,
    )
    assert first.speech.subtalker == GenerationDefaults().subtalker


def test_text_may_be_in_any_script():
    [row] = rows_of(text=["其实我真的 😀".encode()])
    assert row.speech.text == "其实我真的 😀"


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"text": [""]}, "text is empty; say at least one word"),
        ({"text": [" \n"]}, "text is empty; say at least one word"),
        ({"text": [b"caf\xe9"]}, "text is not valid UTF-8: unexpected end of data at byte 3"),
        ({"speaker": [b"\xff"]}, "speaker is not valid UTF-8: invalid start byte at byte 0"),
        ({"instruct": [b"\xff"]}, "instruct is not valid UTF-8: invalid start byte at byte 0"),
        ({"text": ["<|im_end|>"]}, "text contains the control token <|im_end|>; only plain text is spoken"),
        ({"language": ["Klingon"]}, "language is 'Klingon'; this model has Auto, Chinese, "),
        ({"speaker": ["nobody"]}, "speaker is 'nobody'; this model has serena, vivian, "),
        (
            {"audio_encoding": ["mp3"]},
            "audio_encoding is 'mp3'; it must be one of float32, pcm16_base64, wav_",
        ),
        ({"temperature": [np.nan]}, "temperature is nan; it must be a number above 0"),
        ({"temperature": [np.inf]}, "temperature is inf; it must be a number above 0"),
        ({"temperature": [0.0]}, "temperature is 0; it must be a number above 0"),
        ({"top_k": [-1]}, "top_k is -1; it must be 0 (off) or more"),
        ({"top_p": [np.nan]}, "top_p is nan; it must be above 0 and at most 1"),
        ({"repetition_penalty": [np.nan]}, "repetition_penalty is nan; it must be a number above 0"),
        ({"subtalker_temperature": [np.nan]}, "subtalker_temperature is nan; it must be a number above 0"),
        ({"subtalker_top_k": [-1]}, "subtalker_top_k is -1; it must be 0 (off) or more"),
        ({"subtalker_top_p": [1.5]}, "subtalker_top_p is 1.5; it must be above 0 and at most 1"),
        ({"max_frames": [0]}, "max_frames is 0; this model allows 1 to 8191"),
        ({"max_frames": [8192]}, "max_frames is 8192; this model allows 1 to 8191"),
        ({"seed": [1, 2]}, "seed has 2 rows; text has 1"),
        ({"top_k": np.zeros((1, 2), np.int32)}, "top_k has shape [2] in a row; it must be [1]"),
        ({"text": np.zeros((1, 0), object)}, "text is missing; it is the one required input"),
    ],
)
def test_an_input_that_cannot_be_spoken_is_answered_with_its_name_and_value(talker, inputs, complaint):
    code, message = talker.ask(**HELLO | inputs).error
    assert code == TritonError.INVALID_ARG
    assert message.startswith(complaint)


def test_a_request_without_text_is_refused_and_not_an_exception(talker):
    assert talker.ask(seed=[1]).error == (
        TritonError.INVALID_ARG,
        "text is missing; it is the one required input",
    )


def test_a_refusal_is_one_response_and_final(talker):
    call = talker.ask(text=[""])
    call.sender.wait_until_final()
    assert len(call.sender.responses) == 1
    assert outcomes(talker) == {"invalid": 1}


@pytest.mark.parametrize(
    "wrong",
    [{"text": ["One.", ""]}, {"temperature": [1.0, -1.0]}, {"max_frames": [5, 0]}, {"speaker": ["", "x"]}],
)
def test_one_bad_row_refuses_the_request_by_its_number_and_no_row_speaks(talker, wrong):
    call = talker.ask(**TWO_ROWS | wrong)
    code, message = call.error
    assert code == TritonError.INVALID_ARG
    assert len(call.sender.responses) == 1
    assert message.startswith("row 1: ")


def test_a_bad_request_is_answered_while_a_good_one_still_waits_for_a_slot(load_model):
    full = load_model(slots="1", waiting_room="0")
    good, bad = full.call(**HELLO), full.call(text=[""])
    somebody = Somebody(full)
    with executing(full, good, bad):
        assert bad.error[0] == TritonError.INVALID_ARG
        assert good.sender.responses == []
        somebody.leave()
    assert good.chunks[-1].finish_reason == "length"


# --- who leaves, and what breaks --------------------------------------------------------------------------


def test_a_caller_who_leaves_frees_the_slot_and_the_request_ends_once(load_model):
    single = load_model(slots="1", waiting_room="0")
    Somebody(single).leave()
    assert single.ask(**HELLO).chunks[-1].finish_reason == "length"
    assert outcomes(single) == {"cancelled": 1, "ok": 1}


def test_a_caller_of_several_rows_leaves_with_all_of_them(talker):
    Somebody(talker, num_rows=3).leave()
    assert outcomes(talker) == {"cancelled": 1}
    assert published("active_slots").value == 0


def test_a_caller_who_leaves_while_waiting_for_a_slot_is_let_go(load_model):
    full = load_model(slots="1", waiting_room="0")
    left = threading.Event()
    waiting = full.call(is_cancelled=left.is_set, **HELLO)
    somebody = Somebody(full)
    with executing(full, waiting):
        left.set()
        assert waiting.error == (TritonError.CANCELLED, "the caller left before there was a slot")
    assert len(waiting.sender.responses) == 1
    somebody.leave()


class FailingRunner:
    """The model's runner, until it is told to fail once."""

    def __init__(self, runner):
        self._runner = runner
        self.fails_next = threading.Event()

    def advance(self, plan):
        if self.fails_next.is_set():
            self.fails_next.clear()
            raise RuntimeError("device lost")
        return self._runner.advance(plan)

    def __getattr__(self, name):
        return getattr(self._runner, name)


@pytest.fixture
def fragile(talker):
    """A model, and the event that makes its next step fail."""
    talker.model.engine.runner = FailingRunner(talker.model.engine.runner)
    return talker, talker.model.engine.runner.fails_next


def test_a_failed_step_ends_everyone_in_it_and_the_next_request_is_served(fragile):
    model, fail = fragile
    calls = [model.call(**ENDLESS) for _ in range(3)]
    model.execute(*calls)
    for call in calls:
        call.sender.wait_for(2)
    fail.set()
    assert [call.error for call in calls] == [(TritonError.INTERNAL, "the engine failed: device lost")] * 3
    assert model.ask(**HELLO).chunks[-1].finish_reason == "length"
    assert outcomes(model) == {"failed": 3, "ok": 1}


def test_a_failed_step_ends_a_request_of_several_rows_once(fragile):
    model, fail = fragile
    call = model.ask(**rows_of_endless(3))
    call.sender.wait_for(3)
    fail.set()
    assert call.error[0] == TritonError.INTERNAL
    assert outcomes(model) == {"failed": 1}


def test_after_a_failed_step_everyone_sounds_as_before(fragile):
    model, fail = fragile
    before = model.ask(**HELLO).samples
    lost = model.ask(**ENDLESS)
    lost.sender.wait_for(2)
    fail.set()
    assert lost.error[0] == TritonError.INTERNAL
    np.testing.assert_array_equal(model.ask(**HELLO).samples, before)


class DeadRunner:
    """A device that fails at everything, tidying up included."""

    def __getattr__(self, name):
        def fail(*_):
            raise RuntimeError("device lost")

        return fail


def test_a_device_that_stays_broken_still_ends_every_request(talker):
    talker.model.engine.runner = DeadRunner()
    for _ in range(2):
        assert talker.ask(**HELLO).error[0] == TritonError.INTERNAL


def test_a_model_that_shuts_down_refuses_newcomers(talker):
    talker.model.engine.close()
    assert talker.ask(**HELLO).error == (TritonError.UNAVAILABLE, "the model is shutting down")
    assert talker.model.engine.num_inside == 0


def test_letting_go_finishes_what_is_being_spoken(talker):
    calls = [talker.call(**HELLO | {"max_frames": [60], "seed": [seed]}) for seed in range(3)]
    talker.execute(*calls)
    talker.finalize()
    assert [bool(call.chunks[-1].finish_reason) for call in calls] == [True] * 3


@pytest.mark.parametrize("sent_before", [0, 2])
def test_a_chunk_that_cannot_be_sent_ends_its_request_with_an_error_and_nobody_elses(talker, sent_before):
    fates = [None] * sent_before + [pb_utils.TritonModelException("no shared memory")]

    def fail_once(response):
        if fates and (fate := fates.pop(0)):
            raise fate

    lost = talker.call(before_send=fail_once, **HELLO)
    talker.execute(lost)
    assert lost.error == (TritonError.INTERNAL, "a chunk could not be sent: no shared memory")
    assert len(lost.sender.responses) == sent_before + 1
    assert talker.ask(**HELLO).chunks[-1].finish_reason == "length"
    assert outcomes(talker) == {"failed": 1, "ok": 1}


@pytest.mark.parametrize("num_frames", [LARGE_FRAMES, LARGE_FRAMES + 1])
def test_a_whole_utterance_is_one_response_however_large(talker, num_frames):
    call = talker.ask(**ENDLESS | {"max_frames": [num_frames], "stream": [False]})
    [whole] = call.chunks
    assert (whole.num_frames, whole.finish_reason) == (num_frames, "length")
    assert len(whole.samples) == num_frames * FRAME


def test_a_large_utterance_that_there_is_no_memory_for_ends_with_an_error(talker):
    """Triton closes a sender whose FINAL fails, and its caller would wait for ever."""

    def has_room(response):
        if response is not None and not response.has_error():
            raise pb_utils.TritonModelException("no shared memory")

    lost = talker.call(
        before_send=has_room, **ENDLESS | {"max_frames": [LARGE_FRAMES + 1], "stream": [False]}
    )
    talker.execute(lost)
    assert lost.error == (TritonError.INTERNAL, "a chunk could not be sent: no shared memory")


# --- responses in themselves ------------------------------------------------------------------------------


class Ends:
    """Told how a request ended."""

    def __init__(self):
        self.errors = []

    def __call__(self, error):
        self.errors.append(error)


@contextmanager
def response_stream(num_rows):
    """A stream of so many rows, their sinks, the sender behind it, and how it ended; delivered on leaving."""
    outputs = declared_outputs(read_config(MODEL_REPOSITORY / MODEL))
    sender, ends, courier = pb_utils.ResponseSender(outputs), Ends(), Courier()
    rows = [RowRequest(row.speech, True, "float32") for row in rows_of(text=[b"Hi."] * num_rows)]
    stream = ResponseStream(sender, courier, ends)
    yield stream, stream.open(rows), sender, ends
    courier.close()


def chunk_of(num_frames, finish_reason=None, index=0):
    return Chunk(np.zeros(num_frames * FRAME, np.float32), index, num_frames, finish_reason)


def test_nothing_follows_an_error_although_other_rows_still_speak():
    with response_stream(num_rows=2) as (stream, sinks, sender, ends):
        stream.fail(Cancelled("the caller left"))
        sinks[0].write(chunk_of(1))
        sinks[1].write(chunk_of(1, "stop"))
        sinks[0].write(chunk_of(2, "stop", index=1))
    assert sender.is_final
    assert len(sender.responses) == 1
    assert len(ends.errors) == 1


def test_a_request_ends_once_however_many_rows_fail():
    with response_stream(num_rows=3) as (_, sinks, sender, ends):
        for sink in sinks:
            sink.close(EngineFailed("device lost"))
    assert len(sender.responses) == 1
    assert len(ends.errors) == 1


def test_rows_stop_speaking_when_one_of_them_has_failed():
    with response_stream(num_rows=2) as (_, sinks, _, _):
        sinks[0].close(EngineFailed("device lost"))
        assert sinks[1].cancelled


def test_the_end_of_a_row_that_ended_well_says_nothing():
    with response_stream(num_rows=1) as (_, [sink], sender, ends):
        sink.write(chunk_of(1, "stop"))
        sink.close()
    assert len(sender.responses) == 1
    assert ends.errors == [None]


@pytest.mark.parametrize(
    ("error", "code", "counted_as"),
    [
        (InvalidRequest("x"), TritonError.INVALID_ARG, "invalid"),
        (Overloaded("x"), TritonError.UNAVAILABLE, "overloaded"),
        (Cancelled("x"), TritonError.CANCELLED, "cancelled"),
        (EngineFailed("x"), TritonError.INTERNAL, "failed"),
    ],
)
def test_every_error_has_a_code_and_an_outcome(error, code, counted_as):
    assert code_and_words(triton_error(error)) == (code, "x")
    assert outcome(error) == counted_as


def test_every_outcome_is_published():
    assert {outcome(None), *(label for _, label in TABLE.values())} == set(OUTCOMES)


# --- metrics ----------------------------------------------------------------------------------------------


def test_every_series_is_there_from_the_start_at_zero(talker):
    assert [published("requests_total", outcome=label).value for label in OUTCOMES] == [0] * 5
    for reason in ("stop", "length", "runaway"):
        assert published("finish_total", reason=reason).value == 0
    for name in ("active_slots", "waiting_requests", "frames_total", "audio_seconds_total"):
        assert published(name).value == 0
    for name in ("time_to_first_audio_seconds", "real_time_factor", "step_seconds"):
        assert published(name).observations == []


def test_the_slots_are_published_while_the_model_is_loaded(load_model):
    load_model(slots="3").finalize()
    assert published("slots").value == 0


def test_two_instances_share_their_series(load_model):
    for instance in (load_model(slots="3"), load_model(slots="4")):
        instance.ask(**HELLO).sender.wait_until_final()
        instance.finalize()
    assert published("requests_total", outcome="ok").value == 2
    assert published("slots").value == 0


def test_what_was_spoken_is_published_and_gauges_return_to_zero(talker):
    talker.ask(**TWO_ROWS).sender.wait_until_final()
    assert outcomes(talker) == {"ok": 1}
    assert published("frames_total").value == 29
    assert published("audio_seconds_total").value == pytest.approx(29 * 0.08)
    assert published("finish_total", reason="length").value == 2
    assert len(published("time_to_first_audio_seconds").observations) == 2
    assert len(published("real_time_factor").observations) == 2
    assert len(published("step_seconds").observations) >= 20
    assert published("active_slots").value == published("waiting_requests").value == 0


def test_a_model_is_ready_from_its_start_to_its_end(talker):
    assert talker.model.is_ready()
    talker.finalize()
    assert not talker.model.is_ready()


def test_a_server_without_metrics_still_speaks(load_model):
    pb_utils.page.is_allowed = False
    silent = load_model()
    assert not isinstance(silent.model.metrics, PublishedMetrics)
    assert silent.ask(**HELLO).chunks[-1].finish_reason == "length"


# --- loading ----------------------------------------------------------------------------------------------


def test_the_checkpoint_in_the_repository_is_found_from_where_the_model_is(load_model):
    parameters = read_config(MODEL_REPOSITORY / MODEL).parameters
    model = load_model(checkpoint=parameters["checkpoint"].string_value)
    assert model.ask(**HELLO).chunks[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"slot": "4"}, "unknown parameter 'slot'; did you mean 'slots'?"),
        ({"checkpoint": "./nowhere"}, "there is no checkpoint directory"),
        (
            {"checkpoint": "../../checkpoints/tiny/base"},
            "is a base checkpoint; this model needs custom_voice",
        ),
        ({"device": "gpu zero"}, "gpu zero"),
        (
            {"device": "cpu", "instances": 2},
            "CUDA_DEVICE names one device and instance_group asks for several",
        ),
    ],
)
def test_a_model_that_cannot_load_says_which_and_why(load_model, parameters, complaint):
    with pytest.raises(pb_utils.TritonModelException) as refusal:
        load_model(**parameters)
    assert str(refusal.value).startswith(f"{MODEL}: ")
    assert complaint in str(refusal.value)


def test_the_environment_names_another_checkpoint(load_model, tiny_checkpoints, monkeypatch):
    monkeypatch.setenv("QWEN_TTS_CUSTOM_VOICE_MODEL", str(tiny_checkpoints / "custom_voice_0b6"))
    model = load_model(checkpoint="./nowhere")
    assert model.model.engine.speech_config.tts_model_size == "0b6"


def test_an_explicit_load_names_another_checkpoint_than_the_environment(
    load_model, tiny_checkpoints, monkeypatch
):
    monkeypatch.setenv("QWEN_TTS_CUSTOM_VOICE_MODEL", "./nowhere")
    model = load_model(loaded_checkpoint=str(tiny_checkpoints / "custom_voice_0b6"))
    assert model.model.engine.speech_config.tts_model_size == "0b6"


@pytest.mark.parametrize("limit", [{"max_frames": "8"}, {"max_text_tokens": "8"}])
def test_a_model_loads_whatever_its_limits(load_model, limit):
    load_model(**limit)
