"""More callers than room: who waits, who is turned away, who goes first, and that nobody hangs.

The server here speaks to two at once, lets nobody wait inside the model, and Triton queues two for it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from callers import ENDLESS, MODEL, PATIENCE_S, RESTLESS, client_of, posted
from metrics_page import (
    ACTIVE,
    QUEUED,
    WAITING,
    MetricsWatch,
    metrics_at_rest,
    wait_for_metrics,
)
from qwen3_tts_client import Audio, Cancelled, Overloaded, SpeechClient, SpeechStream
from qwen3_tts_engine.launch.server import Server
from real_server import ROOT, clean_server, on_free_ports, wait_until

pytestmark = pytest.mark.triton

TEXT = "Is anybody there?"
CANCELLED = 'qwen3_tts_requests_total{outcome="cancelled"}'
CANCELLED_IN_THE_QUEUE = 'nv_inference_request_failure{reason="CANCELED"}'


@pytest.fixture(scope="module")
def small_server(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("small_server")
    shutil.copytree(ROOT / "model_repository" / MODEL, directory / "models" / MODEL)
    config = directory / "models" / MODEL / "config.pbtxt"
    config.write_text(with_little_room(config.read_text()))
    launch = on_free_ports(
        model_repository=directory / "models",
        log_path=directory / "tritonserver.log",
        environment={"QWEN_TTS_CUSTOM_VOICE_MODEL": str(tiny_checkpoints / "custom_voice")},
    )
    with clean_server(launch) as server:
        yield server


def with_little_room(config: str) -> str:
    for pattern, value in (
        (r'(key: "slots" value { string_value: )"\d+"', r'\1"2"'),
        (r'(key: "waiting_room" value { string_value: )"\d+"', r'\1"0"'),
        (r"(max_queue_size: )\d+", r"\g<1>2"),
    ):
        config, times = re.subn(pattern, value, config)
        assert times == 1, pattern
    return config


@pytest.fixture
def tts(small_server: Server) -> Iterator[SpeechClient]:
    metrics_at_rest(small_server)
    with client_of(small_server) as client:
        yield client


class Crowd:
    """Callers who come one by one, each in their place before the next one comes."""

    def __init__(self, server: Server, tts: SpeechClient) -> None:
        self.heard: SimpleQueue[str] = SimpleQueue()  # who got audio, in that order
        self.callers: dict[str, SpeechStream] = {}
        self.endings: dict[str, Future[None]] = {}
        self._server = server
        self._tts = tts
        self._streams = ExitStack()
        self._ears = ThreadPoolExecutor(max_workers=16)

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.close()
        self._ears.shutdown()

    def add(self, name: str, arrived: dict[str, float], **options: Any) -> None:
        stream = self._streams.enter_context(self._tts.stream(TEXT, **{**ENDLESS, **options}))
        self.callers[name] = stream
        self.endings[name] = self._ears.submit(self._listen, name, stream)
        wait_for_metrics(self._server, arrived)

    def leave(self, name: str) -> None:
        self.callers[name].cancel()
        assert isinstance(self.endings[name].exception(PATIENCE_S), Cancelled)

    def next_heard(self) -> str:
        return self.heard.get(timeout=PATIENCE_S)

    def _listen(self, name: str, stream: SpeechStream) -> None:
        next(stream)
        self.heard.put(name)
        stream.read()


@contextmanager
def two_speakers(server: Server, tts: SpeechClient) -> Iterator[Crowd]:
    """Both slots taken by streams without an end; leaving the block ends whoever still speaks or waits."""
    with Crowd(server, tts) as crowd:
        crowd.add("first speaker", {ACTIVE: 1})
        crowd.add("second speaker", {ACTIVE: 2})
        assert {crowd.next_heard(), crowd.next_heard()} == {"first speaker", "second speaker"}
        yield crowd


def test_with_slots_and_queue_full_the_next_caller_is_told_and_the_others_are_served(
    small_server: Server, tts: SpeechClient
) -> None:
    watch = MetricsWatch(small_server)
    with two_speakers(small_server, tts) as crowd:
        crowd.add("at the door", {WAITING: 1}, max_frames=5)
        crowd.add("first in the queue", {QUEUED: 1}, max_frames=5)
        crowd.add("second in the queue", {QUEUED: 2}, max_frames=5)
        with pytest.raises(Overloaded, match="queue size"):
            tts.synthesize(TEXT)
        with posted(small_server, "generate", {"text": TEXT, "stream": False}) as answer:
            assert answer.status == 503
            assert "queue size" in json.load(answer)["error"]
        crowd.leave("first speaker")
        crowd.leave("second speaker")
        for name in ("at the door", "first in the queue", "second in the queue"):
            crowd.endings[name].result(PATIENCE_S)
            assert (crowd.callers[name].num_frames, crowd.callers[name].finish_reason) == (5, "length")
    assert tts.synthesize(TEXT, max_frames=2).num_frames == 2
    # Whom Triton turned away, the model never met.
    assert watch.outcomes(answered=6) == {"cancelled": 2, "ok": 4}


def test_of_a_crowd_at_once_everyone_is_served_or_told(small_server: Server, tts: SpeechClient) -> None:
    def say(seed: int) -> Audio:
        return tts.synthesize(TEXT, seed=seed, **RESTLESS, max_frames=5)

    with ThreadPoolExecutor(24) as pool, two_speakers(small_server, tts):
        callers = [pool.submit(say, seed) for seed in range(24)]
        wait_until(lambda: any(caller.done() for caller in callers), "somebody is turned away")
    told = [caller for caller in callers if caller.exception()]
    assert {type(caller.exception()) for caller in told} == {Overloaded}
    served = [caller.result() for caller in callers if caller not in told]
    assert len(served) >= 3, "one at the door and two in the queue"
    assert {audio.num_frames for audio in served} == {5}
    assert say(seed=1).num_frames == 5


def test_the_urgent_overtake_the_patient_in_the_queue(small_server: Server, tts: SpeechClient) -> None:
    with two_speakers(small_server, tts) as crowd:
        crowd.add("at the door", {WAITING: 1})
        crowd.add("patient", {QUEUED: 1}, priority=3)
        crowd.add("urgent", {QUEUED: 2}, priority=1)
        crowd.leave("first speaker")
        assert crowd.next_heard() == "at the door"
        crowd.leave("second speaker")
        assert crowd.next_heard() == "urgent"
        crowd.leave("at the door")
        assert crowd.next_heard() == "patient"


def test_whoever_left_the_queue_and_has_no_slot_is_counted_as_waiting(
    small_server: Server, tts: SpeechClient
) -> None:
    with two_speakers(small_server, tts) as crowd:
        crowd.add("at the door", {WAITING: 1})
        crowd.add("first in the queue", {QUEUED: 1})
        crowd.add("second in the queue", {QUEUED: 2})
        crowd.leave("first speaker")
        assert crowd.next_heard() == "at the door"
        # Triton hands over the whole queue at once.
        wait_for_metrics(small_server, {QUEUED: 0})
        wait_for_metrics(small_server, {ACTIVE: 2, WAITING: 2})


def test_who_leaves_at_the_door_is_cancelled_while_the_others_speak_on(
    small_server: Server, tts: SpeechClient
) -> None:
    before = metrics_at_rest(small_server)
    with two_speakers(small_server, tts) as crowd:
        crowd.add("at the door", {WAITING: 1})
        crowd.leave("at the door")
        wait_for_metrics(small_server, {WAITING: 0, CANCELLED: before[CANCELLED] + 1, ACTIVE: 2})


def test_who_leaves_the_queue_is_never_spoken_to(small_server: Server, tts: SpeechClient) -> None:
    before = metrics_at_rest(small_server)
    with two_speakers(small_server, tts) as crowd:
        crowd.add("at the door", {WAITING: 1})
        crowd.add("impatient", {QUEUED: 1})
        crowd.add("patient", {QUEUED: 2})
        crowd.leave("impatient")
        crowd.leave("first speaker")
        assert crowd.next_heard() == "at the door"
        crowd.leave("second speaker")
        assert crowd.next_heard() == "patient"
        crowd.leave("at the door")
        crowd.leave("patient")
    # Triton counts the impatient one; the model, which never saw the request, the other four.
    counted = {CANCELLED: before[CANCELLED] + 4, CANCELLED_IN_THE_QUEUE: before[CANCELLED_IN_THE_QUEUE] + 1}
    wait_for_metrics(small_server, {**counted, ACTIVE: 0, WAITING: 0, QUEUED: 0})
    assert crowd.heard.empty()


def test_by_default_sixty_four_at_once_are_all_served(server: Server) -> None:
    with client_of(server) as tts, ThreadPoolExecutor(64) as pool:
        audios = list(pool.map(lambda seed: tts.synthesize(TEXT, seed=seed, max_frames=2), range(64)))
    assert {audio.num_frames for audio in audios} == {2}
