"""Two Tritons and two gateways behind the balancer's shipped configuration, under load and under fire."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from callers import ENDLESS, FRAME_SAMPLES, PATIENCE_S, RESTLESS, assert_same_audio, client_of
from metrics_page import FRAMES, read_metrics
from qwen3_tts_client import Cancelled, InvalidRequest, SpeechError, SpeechStream, VoicePrompt
from qwen3_tts_engine.launch.server import Server
from real_cluster import REQUESTS_PER_MINUTE, Cluster, Replica
from real_server import wait_until

pytestmark = pytest.mark.triton

TEXT = "Is anybody there?"
FEW_FRAMES = 6
SHORT = {**RESTLESS, "max_frames": FEW_FRAMES}
LONG_FRAMES = 500
LONG = {**RESTLESS, "max_frames": LONG_FRAMES}
HIDDEN_SIZE = 64  # of the tiny checkpoints
PAUSE_S = 0.1  # between a caller's requests: two cores are to start a server meanwhile
SPEECH = "/v1/audio/speech"


def grandpa() -> VoicePrompt:
    dice = np.random.default_rng(7)
    codes = dice.integers(0, 2048, (12, 16), np.int32)
    return VoicePrompt(dice.standard_normal(HIDDEN_SIZE, np.float32), codes, "This is what I sound like.")


@contextmanager
def speaking(cluster: Cluster, count: int) -> Iterator[list[SpeechStream]]:
    """So many endless utterances over one connection, each of which has begun."""
    with cluster.client() as tts, ExitStack() as streams:
        speeches = [streams.enter_context(tts.stream(TEXT, seed=seed, **ENDLESS)) for seed in range(count)]
        for speech in speeches:
            next(iter(speech))
        yield speeches


def wait_for_silence(cluster: Cluster) -> None:
    wait_until(lambda: sum(replica.num_inside() for replica in cluster.replicas) == 0, "nobody speaks")


def test_streams_of_one_connection_spread_over_both_replicas(cluster):
    with speaking(cluster, 8):
        assert [replica.num_speaking() for replica in cluster.replicas] == [4, 4]
    wait_for_silence(cluster)  # who leaves is gone behind the balancer, too


def test_a_newcomer_goes_where_fewer_are_speaking(cluster):
    a, b = cluster.replicas
    with speaking(cluster, 4) as speeches:
        before = [replica.num_speaking() for replica in cluster.replicas]
        for speech in speeches[::2]:
            speech.cancel()
        wait_until(lambda: a.num_speaking() + b.num_speaking() == 2, "two have left")
        with speaking(cluster, 2):
            assert before == [replica.num_speaking() for replica in cluster.replicas] == [2, 2]


def test_a_voice_saved_through_one_replica_is_spoken_by_the_other(cluster):
    here, there = (client_of(replica.server) for replica in cluster.replicas)
    with here, there:
        here.voices.save("grandpa", grandpa(), metadata={"consent": "given"})
        assert there.voices.describe("grandpa").metadata == {"consent": "given"}
        one, other = (tts.synthesize(TEXT, "grandpa", seed=3, **SHORT) for tts in (here, there))
        assert one.num_frames == FEW_FRAMES
        assert_same_audio(one.samples, other.samples)
        there.voices.delete("grandpa")
        assert here.voices.list() == []


def test_a_backup_moves_voices_from_files_to_redis_and_they_sound_the_same(cluster, server: Server, tmp_path):
    with client_of(server) as files, cluster.client() as redis:
        files.voices.save("爷爷", grandpa(), metadata={"consent": "given"})
        assert files.voices.export_to(tmp_path / "voices.zip", ["爷爷"]) == ["爷爷"]
        assert redis.voices.import_from(tmp_path / "voices.zip") == ["爷爷"]
        assert redis.voices.describe("爷爷") == files.voices.describe("爷爷")
        before, after = (tts.synthesize(TEXT, "爷爷", seed=3, **SHORT) for tts in (files, redis))
        assert_same_audio(before.samples, after.samples)
        with pytest.raises(InvalidRequest, match="voices of these names already: '爷爷'"):
            files.voices.import_from(tmp_path / "voices.zip")
        for tts in (files, redis):
            tts.voices.delete("爷爷")


def test_both_gateways_count_a_keys_requests_together(cluster):
    answers = Counter(
        ask_gateway(gateway.url, cluster.limited).status_code
        for gateway in cluster.gateways * REQUESTS_PER_MINUTE
    )
    assert answers.keys() == {200, 429}
    assert answers[200] - REQUESTS_PER_MINUTE in (0, 1)  # one more where that took a minute's third
    for gateway in cluster.gateways:
        refused = ask_gateway(gateway.url, cluster.limited)
        assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)


def test_the_death_of_a_replica_ends_its_own_streams_and_no_others(cluster):
    doomed, other = cluster.replicas
    with speaking(cluster, 8) as speeches, ThreadPoolExecutor(8) as ears:
        endings = [ears.submit(listen_on, speech) for speech in speeches]
        doomed.kill()
        wait_until(lambda: sum(ending.done() for ending in endings) == 4, "its callers know")
        before = read_metrics(other.server)[FRAMES]
        with cluster.client() as tts:
            for seed in range(4):  # from the first one on
                assert tts.synthesize(TEXT, seed=seed, **SHORT).num_frames == FEW_FRAMES
        assert read_metrics(other.server)[FRAMES] >= before + 4 * FEW_FRAMES
        wait_until(lambda: other.num_speaking() == 4, "those four have left and its own speak on")
        unharmed = [speech for speech, ending in zip(speeches, endings, strict=True) if not ending.done()]
        for speech in unharmed:
            speech.cancel()
        reasons = [ending.result(PATIENCE_S) for ending in endings]
    assert len(unharmed) == 4
    assert sum(isinstance(reason, Cancelled) for reason in reasons) == 4, reasons


def listen_on(speech: SpeechStream) -> SpeechError:
    with pytest.raises(SpeechError) as caught:
        for _ in speech:
            pass
    return caught.value


class Load:
    """Callers who ask again and again, each in one way, and what became of it."""

    def __init__(self, cluster: Cluster, *ways: Callable[[Cluster], None]) -> None:
        self._cluster = cluster
        self._ways = ways
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(len(ways))
        self._counts: list[Future[int]] = []

    def __enter__(self) -> Load:
        self._counts = [self._pool.submit(self._again_and_again, ask) for ask in self._ways]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown()

    def answered(self) -> list[int]:
        """By caller; raises what any of them was told but audio."""
        self._is_over.set()
        return [count.result(PATIENCE_S) for count in self._counts]

    def _again_and_again(self, ask: Callable[[Cluster], None]) -> int:
        times = 0
        while not self._is_over.wait(PAUSE_S):
            ask(self._cluster)
            times += 1
        return times


def ask_triton(cluster: Cluster) -> None:
    with cluster.client() as tts:
        for _ in range(4):  # some on one connection, some on a new one
            assert tts.synthesize(TEXT, seed=1, **SHORT).num_frames == FEW_FRAMES


def ask_a_gateway(cluster: Cluster) -> None:
    assert_spoken(ask_gateway(cluster.url, cluster.unlimited))


def keep_asking_a_gateway(cluster: Cluster) -> None:
    with httpx.Client() as connection:
        for _ in range(20):
            assert_spoken(ask_gateway(cluster.url, cluster.unlimited, connection.post))


def assert_spoken(response: httpx.Response) -> None:
    assert response.status_code == 200, response.text
    assert 0 < len(response.content) <= 2 * FEW_FRAMES * FRAME_SAMPLES


def ask_gateway(
    url: str, headers: dict[str, str], post: Callable[..., httpx.Response] = httpx.post
) -> httpx.Response:
    body = {"input": TEXT, "voice": "ryan", "response_format": "pcm", "max_new_tokens": FEW_FRAMES + 1}
    return post(url + SPEECH, headers=headers, json=body, timeout=PATIENCE_S)


def converse(cluster: Cluster) -> None:
    """Until the session is over, or the gateway; then what was not begun is said in another one."""
    with conversation(cluster) as socket:
        for _ in range(4):
            if not is_spoken(socket):
                return


@contextmanager
def conversation(cluster: Cluster, num_frames: int = FEW_FRAMES) -> Iterator[ClientConnection]:
    url = cluster.url.replace("http", "ws") + f"{SPEECH}/stream"
    manner = RESTLESS | {"max_new_tokens": num_frames + 1, "seed": 1, "voice": "ryan"}
    config = manner | {"type": "session.config", "response_format": "pcm", "stream_audio": True}
    with connect(url, additional_headers=cluster.unlimited, open_timeout=PATIENCE_S) as socket:
        socket.send(json.dumps(config))
        yield socket


def is_spoken(socket: ClientConnection) -> bool:
    """Say something; all of it is spoken, or none because the gateway leaves."""
    heard: list[bytes] = []
    try:
        say(socket)
        hear_to_the_end(socket, heard)
    except ConnectionClosed as closed:
        if heard or closed.rcvd is None or closed.rcvd.code != 1012:
            raise
        return False
    assert sum(map(len, heard)) == 2 * FEW_FRAMES * FRAME_SAMPLES
    return True


def hear_to_the_end(socket: ClientConnection, heard: list[bytes]) -> None:
    while not is_the_end(message := socket.recv(PATIENCE_S)):
        if isinstance(message, bytes):
            heard.append(message)


def say(socket: ClientConnection) -> None:
    for message in ({"type": "input.text", "text": TEXT}, {"type": "input.done"}):
        socket.send(json.dumps(message))


def is_the_end(message: str | bytes) -> bool:
    if isinstance(message, bytes):
        return False
    event = json.loads(message)
    assert event.get("code", "shutting_down") == "shutting_down", event
    return event["type"] == "session.done"


def test_a_rolling_restart_under_load_fails_no_request(cluster):
    with Load(cluster, *(ask_triton, ask_a_gateway) * 2) as load, ThreadPoolExecutor(2) as ears:
        for replica in cluster.replicas:
            is_spoken = threading.Event()
            long = ears.submit(say_something_long, replica, is_spoken)
            assert is_spoken.wait(PATIENCE_S)
            cluster.restart(replica, num_direct=1)
            assert long.result(PATIENCE_S) == LONG_FRAMES
        answered = load.answered()
    assert all(answered), answered


def say_something_long(replica: Replica, is_spoken: threading.Event) -> int:
    """Longer than the balancer waits: its end is the drain's."""
    with client_of(replica.server) as tts, tts.stream(TEXT, seed=1, **LONG) as speech:
        next(speech)
        is_spoken.set()
        return speech.read().num_frames


def test_a_rolling_restart_of_the_gateways_under_load_fails_no_request(cluster):
    ways = (ask_a_gateway, keep_asking_a_gateway, converse)
    with Load(cluster, *ways) as load, ThreadPoolExecutor(2) as ears:
        for gateway in cluster.gateways:
            [other] = {*cluster.gateways} - {gateway}
            cluster.balancer.take_out(cluster.name_of(other))
            with listening(cluster) as stream, conversation(cluster, LONG_FRAMES) as socket:
                say(socket)
                socket.recv(PATIENCE_S)
                cluster.balancer.put_back(cluster.name_of(other))
                ends = [ears.submit(num_bytes_of, stream), ears.submit(num_bytes_until_the_end, socket)]
                cluster.restart_gateway(gateway)
                assert [end.result(PATIENCE_S) for end in ends] == [2 * LONG_FRAMES * FRAME_SAMPLES] * 2
        answered = load.answered()
    assert all(answered), answered


@contextmanager
def listening(cluster: Cluster) -> Iterator[httpx.Response]:
    """To something long, through the balancer."""
    body = RESTLESS | {"input": TEXT, "voice": "ryan", "response_format": "pcm", "seed": 1}
    body |= {"max_new_tokens": LONG_FRAMES + 1}
    with httpx.stream(
        "POST", cluster.url + SPEECH, headers=cluster.unlimited, json=body, timeout=PATIENCE_S
    ) as response:
        assert response.status_code == 200
        yield response


def num_bytes_of(stream: httpx.Response) -> int:
    return sum(map(len, stream.iter_raw()))


def num_bytes_until_the_end(socket: ClientConnection) -> int:
    heard: list[bytes] = []
    hear_to_the_end(socket, heard)
    return sum(map(len, heard))
