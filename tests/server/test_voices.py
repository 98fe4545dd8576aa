"""Saved voices through the real server: kept, spoken with, mixed, and seen by the server beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from callers import PATIENCE_S, grpc_address
from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.server import Server
from real_server import ROOT, clean_server, on_free_ports

pytestmark = pytest.mark.triton

WORDS = "This is what I sound like."
HIDDEN_SIZE = 64  # of the tiny checkpoints


class TwoServers:
    """Two servers with one store; the first can speak, the second only keeps voices."""

    MODELS = (("voices", "qwen3_tts_base"), ("voices",))

    def __init__(self, directory: Path, checkpoints: Path) -> None:
        self._directory = directory
        self._environment = {
            "VOICE_STORE": f"file://{directory}/store",
            "QWEN_TTS_CUSTOM_VOICE_MODEL": str(checkpoints / "custom_voice"),
            "QWEN_TTS_BASE_MODEL": str(checkpoints / "base"),
        }
        self._running = ExitStack()
        self.servers: list[Server] = []
        for i, models in enumerate(self.MODELS):
            for model in models:
                shutil.copytree(ROOT / "model_repository" / model, directory / str(i) / model)

    def start(self) -> None:
        self.servers = [self._running.enter_context(clean_server(self._config(i))) for i in range(2)]

    def stop(self) -> None:
        self._running.close()

    def _config(self, i: int) -> LaunchConfig:
        log_path = self._directory / f"{i}.log"
        return on_free_ports(self._environment, model_repository=self._directory / str(i), log_path=log_path)


@pytest.fixture(scope="module")
def two_servers(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoServers]:
    two = TwoServers(tmp_path_factory.mktemp("voices"), tiny_checkpoints)
    try:
        two.start()
        yield two
    finally:
        two.stop()


@pytest.fixture
def server(two_servers: TwoServers) -> Server:
    return two_servers.servers[0]


@pytest.fixture
def voices(two_servers: TwoServers) -> list[Callable[..., triton.InferResult]]:
    """`voices[0]("save", name=…)`: what each server's model answers. Nothing is saved at first."""
    askers = [partial(ask, server) for server in two_servers.servers]
    for voice in answer(askers[0]("list"))["voices"]:
        askers[0]("delete", name=voice["name"])
    return askers


def ask(server: Server, operation: str, **inputs: Any) -> triton.InferResult:
    given = {"operation": operation, **inputs}
    with triton.InferenceServerClient(grpc_address(server)) as client:
        return client.infer("voices", [tensor(name, value) for name, value in given.items()])


def tensor(name: str, value: Any) -> triton.InferInput:
    """One row of an array, or of one text."""
    array = np.array([[value.encode()]], object) if isinstance(value, str) else np.asarray(value)[None]
    return triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)


def answer(result: triton.InferResult) -> Any:
    return json.loads(result.as_numpy("result").item())


def recording(seed: int, num_frames: int = 12) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    return {
        "speaker_embedding": dice.standard_normal(HIDDEN_SIZE, np.float32),
        "ref_codes": dice.integers(0, 2048, (num_frames, 16), np.int32),
        "ref_text": WORDS,
    }


def spoken(server: Server, **voice: Any) -> NDArray[np.float32]:
    """A short utterance, always of the same seed."""
    inputs = {
        "text": "Good morning.",
        "seed": np.array([5]),
        "max_frames": np.array([6], np.int32),
        "stream": np.array([False]),
        **voice,
    }
    arrivals: list[Any] = []
    with triton.InferenceServerClient(grpc_address(server)) as client:
        client.start_stream(lambda result, error: arrivals.append(error or result))
        client.async_stream_infer("qwen3_tts_base", [tensor(n, v) for n, v in inputs.items()])
        client.stop_stream()
    if isinstance(arrivals[0], InferenceServerException):
        raise arrivals[0]
    return arrivals[0].as_numpy("audio")[0]


@pytest.fixture
def speak(server: Server) -> Callable[..., NDArray[np.float32]]:
    """`speak(voice="grandpa")`: what the first server says."""
    return partial(spoken, server)


def test_a_voice_saved_at_one_server_is_known_to_the_other(voices):
    here, there = voices
    metadata = {"consent": "recorded and agreed, 2025-03-04"}
    assert answer(here("save", name="爷爷", metadata=json.dumps(metadata), **recording(1))) == {
        "name": "爷爷"
    }
    [voice] = answer(there("list"))["voices"]
    assert (voice["name"], voice["ref_text"], voice["metadata"]) == ("爷爷", WORDS, metadata)
    described = there("describe", name="爷爷")
    assert answer(described) == voice
    np.testing.assert_array_equal(described.as_numpy("ref_codes")[0], recording(1)["ref_codes"])
    np.testing.assert_array_equal(
        described.as_numpy("speaker_embedding")[0], recording(1)["speaker_embedding"]
    )
    assert answer(there("delete", name="爷爷")) == {"name": "爷爷"}
    assert answer(here("list")) == {"voices": []}


def test_a_voice_without_frames_is_described_over_the_wire(voices):
    voices[0]("save", name="grandpa", speaker_embedding=recording(1)["speaker_embedding"])
    described = voices[0]("describe", name="grandpa")
    assert answer(described)["x_vector_only"] is True
    assert described.as_numpy("ref_codes").shape == (1, 0, 16)
    assert described.as_numpy("ref_text").item() == b""


def test_a_saved_voice_sounds_like_the_prompt_it_was_saved_from(voices, speak):
    voices[1]("save", name="grandpa", **recording(1))
    np.testing.assert_array_equal(speak(voice="grandpa"), speak(**recording(1)))


def test_a_mix_sounds_like_the_mean_of_the_embeddings(voices, speak):
    for name, seed in (("a", 1), ("b", 2)):
        voices[0]("save", name=name, **recording(seed))
    a, b = (recording(seed)["speaker_embedding"].astype(np.float64) for seed in (1, 2))
    mean = np.average([a, b], axis=0, weights=[2, 1]).astype(np.float32)
    np.testing.assert_array_equal(speak(voice="a(2)+b(1)"), speak(speaker_embedding=mean))


def test_a_voice_outlives_both_servers_and_sounds_as_it_did(two_servers, voices, speak):
    _, there = voices
    there("save", name="grandpa", **recording(1))
    before = speak(voice="grandpa")
    two_servers.stop()
    two_servers.start()
    here, there = two_servers.servers
    np.testing.assert_array_equal(spoken(here, voice="grandpa"), before)
    assert answer(ask(there, "describe", name="grandpa"))["ref_text"] == WORDS


REFUSED = {
    "a voice nobody saved": ("describe", {"name": "nobody"}, "NOT_FOUND", "there is no voice named 'nobody'"),
    "a path": ("save", {"name": "../x", **recording(1)}, "INVALID_ARGUMENT", "name is '../x'"),
    "a speaker": ("save", {"name": "Ryan", **recording(1)}, "INVALID_ARGUMENT", "a built-in speaker's"),
    "another operation": ("rename", {}, "INVALID_ARGUMENT", "operation is 'rename'; it must be one of list"),
    "another model": (
        "save",
        {"name": "x", "speaker_embedding": np.ones(2048, np.float32)},
        "INVALID_ARGUMENT",
        "made by a model of another size",
    ),
}


@pytest.mark.parametrize(("operation", "inputs", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_done_is_refused_with_a_code_and_a_reason(voices, operation, inputs, code, message):
    with pytest.raises(InferenceServerException, match=message) as refusal:
        voices[0](operation, **inputs)
    assert refusal.value.status() == f"StatusCode.{code}"


def test_speakers_and_languages_are_listed(voices):
    names = [speaker["name"] for speaker in answer(voices[0]("speakers"))["speakers"]]
    assert sorted(names)[:3] == ["Aiden", "Dylan", "Eric"]
    assert answer(voices[0]("languages"))["languages"][:2] == ["Auto", "Chinese"]


def test_voices_can_be_listed_with_curl(server, voices):
    voices[0]("save", name="grandpa", **recording(1))
    listed = post(server, "generate", {"operation": "list"})
    assert [voice["name"] for voice in json.loads(listed["result"])["voices"]] == ["grandpa"]
    with pytest.raises(HTTPError) as refusal:
        post(server, "generate", {"operation": "delete", "name": "nobody"})
    with refusal.value as response:
        assert json.load(response) == {"error": "NOT_FOUND: there is no voice named 'nobody'"}


def post(server: Server, route: str, body: Any) -> Any:
    url = f"http://127.0.0.1:{server.http_port}/v2/models/voices/{route}"
    with urlopen(Request(url, json.dumps(body).encode()), timeout=PATIENCE_S) as response:
        return json.load(response)
