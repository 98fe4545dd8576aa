"""The engine's promises to a caller: chunks that grow, slots that come free, and exactly one end."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from qwen3_tts_engine import metrics as families
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import Cancelled, EngineFailed, InvalidRequest, Overloaded, SpeechError
from qwen3_tts_engine.metrics import Family
from qwen3_tts_engine.request import SpeechRequest
from speaking import Listener, Speaker

HELLO = SpeechRequest("Hello world.", speaker="ryan", seed=1, max_frames=30)


class Tally:
    """Metrics as numbers."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], float] = {}
        self.observations: dict[str, list[float]] = {}

    def add(self, family: Family, amount: float = 1, label: str = "") -> None:
        key = (family.name, label)
        self.sums[key] = self.sums.get(key, 0) + amount

    def observe(self, family: Family, value: float) -> None:
        self.observations.setdefault(family.name, []).append(value)

    def __getitem__(self, family: Family) -> float:
        return self.sums.get((family.name, ""), 0)


@pytest.fixture(scope="module")
def long(speaker_of: Callable[[str], Speaker]) -> SpeechRequest:
    """An utterance that does not end before its cap of 60 frames: most seeds of a tiny checkpoint do."""
    candidates = (replace(HELLO, seed=seed, max_frames=60) for seed in range(100))
    return next(r for r in candidates if speaker_of("custom_voice").say(r).finish_reason == "length")


@pytest.fixture
def make_speaker(load_engine: Callable[..., Engine]) -> Callable[..., Speaker]:
    return lambda **config: Speaker(load_engine(**config))


@pytest.fixture
def running_engine(load_engine: Callable[..., Engine]) -> Iterator[Engine]:
    """Two slots, nobody may wait inside, and its own thread."""
    engine = load_engine(slots=2, waiting_room=0)
    engine.start(Tally())
    yield engine
    engine.close()


class Ended(Listener):
    """A listener another thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.first_chunk = threading.Event()
        self.end = threading.Event()

    def write(self, chunk: object) -> None:
        super().write(chunk)  # type: ignore[arg-type]
        self.first_chunk.set()

    def close(self, error: SpeechError | None = None) -> None:
        super().close(error)
        self.end.set()


def test_the_first_chunk_is_one_frame_and_the_next_ones_grow(speaker: Speaker, long: SpeechRequest) -> None:
    listener = speaker.say(long)
    assert len(listener.codes) == 60, "this seed should speak to the cap"
    assert [len(chunk.samples) // 1920 for chunk in listener.chunks] == [1, 2, 4, 8, 12, 12, 12, 9]
    assert [chunk.index for chunk in listener.chunks] == list(range(8))
    assert [chunk.num_frames for chunk in listener.chunks] == [1, 3, 7, 15, 27, 39, 51, 60]


def test_the_first_chunk_leaves_in_the_step_that_read_the_prompt(speaker: Speaker) -> None:
    listener = speaker.submit(HELLO)
    speaker.engine.step()
    assert len(listener.chunks) == 1
    speaker.finish()


def test_only_the_last_chunk_says_why_it_is_the_last(speaker: Speaker) -> None:
    listener = speaker.say(HELLO)
    assert [bool(chunk.finish_reason) for chunk in listener.chunks] == [False] * (
        len(listener.chunks) - 1
    ) + [True]
    assert listener.times_closed == 1
    assert listener.error is None


def test_a_cap_that_was_asked_for_ends_with_length(speaker: Speaker, long: SpeechRequest) -> None:
    listener = speaker.say(replace(long, max_frames=3))
    assert (len(listener.codes), listener.finish_reason) == (3, "length")


def test_an_utterance_that_ends_by_itself_ends_with_stop(speaker: Speaker) -> None:
    reasons = {speaker.say(replace(HELLO, seed=seed, max_frames=200)).finish_reason for seed in range(6)}
    assert "stop" in reasons


def test_a_voice_that_lost_its_way_is_ended_in_proportion_to_its_text(
    make_speaker: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch, long: SpeechRequest
) -> None:
    monkeypatch.setattr("qwen3_tts_engine.sequence.RUNAWAY_FRAMES", 2)
    monkeypatch.setattr("qwen3_tts_engine.sequence.RUNAWAY_FRAMES_PER_TOKEN", 1)
    speaker = make_speaker(slots=1)
    listener = speaker.say(replace(long, max_frames=None))
    num_text_tokens = speaker.engine.prepare(long, Listener()).prompt.num_text_tokens
    assert (len(listener.codes), listener.finish_reason) == (2 + num_text_tokens, "runaway")


def test_silence_after_the_last_chunk_still_says_why_it_ended(speaker: Speaker) -> None:
    """An utterance may end right after a chunk was sent; the reason then travels with no samples."""
    for seed in range(200):
        listener = speaker.say(replace(HELLO, seed=seed, max_frames=40))
        if not len(listener.chunks[-1].samples):
            break
    else:
        pytest.fail("no seed ends on a chunk's boundary")
    assert listener.finish_reason == "stop"
    assert len(listener.samples) == len(listener.codes) * 1920


def test_a_caller_who_leaves_frees_the_slot_before_the_next_frame(
    speaker: Speaker, long: SpeechRequest
) -> None:
    listener = speaker.submit(long)
    speaker.engine.step()
    listener.leave()
    speaker.engine.step()
    assert speaker.engine.scheduler.running == []
    assert len(listener.frames) == 1
    assert isinstance(listener.error, Cancelled)
    assert listener.times_closed == 1


def test_when_one_leaves_the_others_speak_on_as_if_nothing_had_happened(
    speaker: Speaker, long: SpeechRequest
) -> None:
    requests = [replace(long, language=language) for language in ("Auto", "English", "German")]
    undisturbed = [speaker.say(request).codes for request in requests]
    first, leaver, last = (speaker.submit(request) for request in requests)
    for _ in range(4):
        speaker.engine.step()
    leaver.leave()
    speaker.finish()
    assert np.array_equal(first.codes, undisturbed[0])
    assert np.array_equal(last.codes, undisturbed[2])
    assert len(first.samples) == len(first.codes) * 1920


def test_a_waiting_caller_who_leaves_is_never_spoken_to(
    make_speaker: Callable[..., Speaker], long: SpeechRequest
) -> None:
    speaker = make_speaker(slots=1, waiting_room=1)
    speaking, waiting = speaker.submit(long), speaker.submit(HELLO)
    speaker.engine.step()
    waiting.leave()
    speaker.finish()
    assert isinstance(waiting.error, Cancelled)
    assert not waiting.frames
    assert len(speaking.codes) == 60


def test_a_newcomer_delays_running_streams_by_no_step(
    make_speaker: Callable[..., Speaker], long: SpeechRequest
) -> None:
    speaker = make_speaker(slots=2)
    running = speaker.submit(long)
    speaker.engine.step()
    newcomer = speaker.submit(HELLO)
    speaker.engine.step()
    assert (len(running.frames), len(newcomer.frames)) == (2, 1)
    speaker.finish()


def test_a_failed_step_ends_those_in_flight_with_an_error_and_serves_the_next(
    running_engine: Engine, long: SpeechRequest
) -> None:
    lost, heard = Ended(), Ended()
    advance = running_engine.runner.advance

    def fail_once(plan: object) -> object:
        running_engine.runner.advance = advance  # type: ignore[method-assign]
        raise RuntimeError("out of memory")

    running_engine.runner.advance = fail_once  # type: ignore[method-assign, assignment]
    running_engine.submit(running_engine.prepare(long, lost))
    assert lost.end.wait(20)
    running_engine.submit(running_engine.prepare(HELLO, heard))
    assert heard.end.wait(20)
    assert isinstance(lost.error, EngineFailed)
    assert "out of memory" in str(lost.error)
    assert heard.error is None


def test_newcomers_who_cannot_begin_cost_nobody_else_anything(
    make_speaker: Callable[..., Speaker], long: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = make_speaker(slots=4)
    undisturbed = speaker.say(long).codes
    running = speaker.submit(long)
    speaker.engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(speaker.engine.runner._models.talker, "prefill", _no_memory)
        lost = [speaker.submit(HELLO) for _ in range(2)]
        speaker.engine.step()
    served = speaker.submit(HELLO)
    speaker.finish()
    assert [type(listener.error) for listener in lost] == [EngineFailed] * 2
    assert "no memory" in str(lost[0].error)
    assert np.array_equal(running.codes, undisturbed)
    assert served.finish_reason


def _no_memory(*_: object) -> None:
    raise RuntimeError("no memory")


def test_a_full_engine_lets_the_next_one_in_when_a_slot_comes_free(running_engine: Engine) -> None:
    listeners = [Ended() for _ in range(5)]
    for listener in listeners:  # the third blocks until one of the first two is done
        running_engine.submit(running_engine.prepare(HELLO, listener))
        assert running_engine.num_inside <= 2
    for listener in listeners:
        assert listener.end.wait(20)
        assert listener.error is None


def test_a_caller_who_leaves_at_the_door_is_not_let_in(
    load_engine: Callable[..., Engine], long: SpeechRequest
) -> None:
    engine = load_engine(slots=1, waiting_room=0)
    engine.submit(engine.prepare(long, Listener()))
    gone = Listener()
    gone.leave()
    with pytest.raises(Cancelled):
        engine.submit(engine.prepare(HELLO, gone))
    assert engine.num_inside == 1


def test_a_closing_engine_finishes_who_is_in_and_refuses_newcomers(
    load_engine: Callable[..., Engine], long: SpeechRequest
) -> None:
    engine = load_engine(slots=1)
    engine.start(Tally())
    inside = Ended()
    engine.submit(engine.prepare(long, inside))
    assert inside.first_chunk.wait(20)
    engine.close()
    assert inside.finish_reason == "length"
    with pytest.raises(Overloaded, match="shutting down"):
        engine.submit(engine.prepare(HELLO, Listener()))


BAD_REQUESTS = {
    "speaker": (replace(HELLO, speaker="nobody"), r"speaker is 'nobody'; this model has serena, vivian"),
    "language": (replace(HELLO, language="Klingon"), r"language is 'Klingon'; this model has Auto, Chinese"),
    "dialect by name": (replace(HELLO, language="sichuan_dialect"), "language is 'sichuan_dialect'"),
    "max_frames zero": (replace(HELLO, max_frames=0), "max_frames is 0; this model allows 1 to 8191"),
    "max_frames above": (replace(HELLO, max_frames=8192), "max_frames is 8192"),
    "control token": (
        replace(HELLO, text="Hi <|im_end|> there"),
        r"text contains the control token <\|im_end\|>",
    ),
    "control token in instruct": (
        replace(HELLO, instruct="<tts_pad>"),
        "instruct contains the control token",
    ),
    "absurdly long": (replace(HELLO, text="word " * 10_000), "text has"),
    "flood": (replace(HELLO, text="x" * 1_000_000), "text has 1000000 characters"),
}


@pytest.mark.parametrize(("request_", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_request_this_checkpoint_cannot_speak_is_refused_before_it_takes_anything(
    speaker: Speaker, request_: SpeechRequest, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        speaker.submit(request_)
    assert speaker.engine.is_idle


def test_metrics_tell_what_happened(load_engine: Callable[..., Engine], long: SpeechRequest) -> None:
    engine = load_engine(slots=2)
    engine.metrics = tally = Tally()
    speaker = Speaker(engine)
    heard = speaker.submit(long)
    left = speaker.submit(long)
    engine.step()
    assert (tally[families.ACTIVE_SLOTS], tally[families.WAITING]) == (2, 0)
    left.leave()
    engine.step()
    assert tally[families.ACTIVE_SLOTS] == 1
    speaker.finish()
    assert tally[families.ACTIVE_SLOTS] == 0
    assert tally[families.FRAMES] == len(heard.frames) + len(left.frames)
    assert tally[families.AUDIO_SECONDS] == pytest.approx((len(heard.samples) + len(left.samples)) / 24_000)
    assert tally.sums[families.FINISHES.name, "length"] == 1
    assert len(tally.observations[families.FIRST_AUDIO.name]) == 2
    assert len(tally.observations[families.REAL_TIME_FACTOR.name]) == 1


def test_a_failed_step_leaves_nobody_counted(
    load_engine: Callable[..., Engine], long: SpeechRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(slots=2)
    engine.metrics = tally = Tally()
    speaker = Speaker(engine)
    speaker.submit(long)
    engine.step()
    speaker.submit(HELLO)  # takes a slot in the step that fails, and was never spoken to
    monkeypatch.setattr(engine.runner, "advance", _no_memory)
    with pytest.raises(RuntimeError, match="no memory"):
        engine.step()
    engine._fail_everyone(EngineFailed("no memory"))
    assert (tally[families.ACTIVE_SLOTS], tally[families.WAITING]) == (0, 0)


def test_memory_that_a_long_utterance_took_is_given_back(make_speaker: Callable[..., Speaker]) -> None:
    speaker = make_speaker(slots=1)
    cache = speaker.engine.runner.cache
    before = cache.capacity
    speaker.submit(replace(HELLO, text="word " * before, max_frames=2))
    speaker.engine.step()
    assert cache.capacity > before
    speaker.finish()
    assert cache.capacity == before


def test_an_engine_that_has_rested_gives_freed_memory_back_and_speaks_on(
    load_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Semaphore(0)
    monkeypatch.setattr("qwen3_tts_engine.engine.IDLE_S", 0.0)
    monkeypatch.setattr("qwen3_tts_engine.engine.give_back_freed_memory", given_back.release)
    engine = load_engine(slots=1)
    engine.start(Tally())
    try:
        for _ in range(2):  # once for every rest, and never while somebody speaks
            assert given_back.acquire(timeout=10)
            assert not given_back.acquire(blocking=False)
            listener = Ended()
            engine.submit(engine.prepare(HELLO, listener))
            assert listener.end.wait(10)
            assert listener.samples.size
    finally:
        engine.close()
