"""From a recording to a voice, and from there to speech, through the real server."""

from __future__ import annotations

import io
import json
import queue
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from callers import PATIENCE_S, assert_same_audio, grpc_address
from qwen3_tts_engine.config import CheckpointConfig
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_engine.request import FRAME_SAMPLES, VoicePrompt
from qwen3_tts_engine.voice_encoder import Recording, VoiceEncoder
from real_server import ROOT, clean_server, on_free_ports
from recordings import humming, written
from upstream_oracle import Upstream

pytestmark = pytest.mark.triton

MODELS = ("reference_audio", "voice_encoder", "create_voice", "qwen3_tts_base", "qwen3_tts_voice_clone")
TRANSCRIPT = "This is what I sound like."


@pytest.fixture(scope="module")
def server(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with nothing but what makes a voice and speaks with it."""
    directory = tmp_path_factory.mktemp("server")
    for model in MODELS:
        shutil.copytree(ROOT / "model_repository" / model, directory / "models" / model)
    config = on_free_ports(
        environment={"QWEN_TTS_BASE_MODEL": str(tiny_checkpoints / "base")},
        model_repository=directory / "models",
        log_path=directory / "tritonserver.log",
    )
    with clean_server(config) as server:
        yield server


@pytest.fixture(scope="module")
def encode(tiny_checkpoints: Path) -> Callable[..., VoicePrompt]:
    """The voice encoder in this process."""
    encoder = VoiceEncoder.load(CheckpointConfig("base", device="cpu"), tiny_checkpoints)
    return lambda *recording: encoder.encode(Recording(*recording))


@dataclass(frozen=True)
class Chunk:
    """What a caller hears at a time."""

    audio: NDArray[np.float32]
    index: int
    num_frames: int
    finish_reason: bytes

    @classmethod
    def in_(cls, result: triton.InferResult) -> Chunk:
        names = ("chunk_index", "num_frames", "finish_reason")
        return cls(result.as_numpy("audio")[0], *(result.as_numpy(name).item() for name in names))


@pytest.fixture
def speak(server: Server) -> Callable[..., list[Chunk]]:
    """`speak("qwen3_tts_voice_clone", text=…)`: every chunk of the utterance."""

    def ask(model: str, **inputs: Any) -> list[Chunk]:
        arrivals: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with triton.InferenceServerClient(grpc_address(server)) as client:
            client.start_stream(lambda result, error: arrivals.put(error or result))
            tensors = [tensor(name, value) for name, value in inputs.items()]
            client.async_stream_infer(model, tensors)
            chunks: list[Chunk] = []
            while not (chunks and chunks[-1].finish_reason):
                arrival = arrivals.get(timeout=PATIENCE_S)
                if isinstance(arrival, InferenceServerException):
                    raise arrival
                chunks.append(Chunk.in_(arrival))
            client.stop_stream()
            return chunks

    return ask


@pytest.fixture
def infer(server: Server) -> Iterator[Callable[..., VoicePrompt]]:
    """`infer("create_voice", ref_audio=…)`: the voice that a model answers with."""
    with triton.InferenceServerClient(grpc_address(server)) as client:

        def ask(model: str, **inputs: Any) -> VoicePrompt:
            result = client.infer(model, [tensor(name, value) for name, value in inputs.items()])
            return VoicePrompt(result.as_numpy("speaker_embedding")[0], result.as_numpy("ref_codes")[0])

        yield ask


def tensor(name: str, value: Any) -> triton.InferInput:
    """One row; a list is a row's only value."""
    is_text = isinstance(value, list) and isinstance(value[0], bytes)
    array = np.array([value], object) if is_text else np.asarray(value)[None]
    return triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)


def voice(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    """A tone and breath."""
    tone = np.sin(np.arange(num_samples) * 0.03 * (1 + seed))
    breath = np.random.default_rng(seed).standard_normal(num_samples)
    return (0.5 * tone + 0.05 * breath).astype(np.float32)


def wav(pcm: NDArray[np.float32]) -> bytes:
    """A file that loses nothing."""
    file = io.BytesIO()
    soundfile.write(file, pcm, 24_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def assert_same_voice(one: VoicePrompt, other: VoicePrompt) -> None:
    np.testing.assert_array_equal(one.ref_codes, other.ref_codes)
    np.testing.assert_allclose(one.speaker_embedding, other.speaker_embedding, rtol=0, atol=1e-5)


def test_a_recording_becomes_the_voice_that_the_encoder_hears(infer, encode):
    pcm = voice(50_000)
    made = infer("voice_encoder", pcm=pcm, ref_text=[TRANSCRIPT.encode()])
    assert made.ref_codes.dtype == np.int32
    assert_same_voice(made, encode(pcm, TRANSCRIPT))


def test_a_file_becomes_the_same_voice_as_its_samples(infer):
    pcm = voice(60_000)
    from_samples = infer("voice_encoder", pcm=pcm, ref_text=[TRANSCRIPT.encode()])
    from_file = infer("create_voice", ref_audio=[wav(pcm)], ref_text=[TRANSCRIPT.encode()])
    assert_same_voice(from_file, from_samples)


@pytest.mark.parametrize("model", ["voice_encoder", "create_voice"])
def test_an_embedding_alone_comes_with_no_frames(infer, encode, model):
    pcm = voice(30_000)
    reference = {"pcm": pcm} if model == "voice_encoder" else {"ref_audio": [wav(pcm)]}
    made = infer(model, x_vector_only=[True], **reference)
    assert made.ref_codes.shape == (0, 16)
    np.testing.assert_allclose(
        made.speaker_embedding, encode(pcm, "", True).speaker_embedding, rtol=0, atol=1e-5
    )


def test_eight_callers_at_once_get_the_voices_they_get_alone(infer):
    files = [wav(voice(30_000 + 1000 * i, seed=i)) for i in range(8)]

    def create(file: bytes) -> VoicePrompt:
        return infer("create_voice", ref_audio=[file], ref_text=[TRANSCRIPT.encode()])

    with ThreadPoolExecutor(len(files)) as callers:
        together = list(callers.map(create, files))
    for file, made in zip(files, together, strict=True):
        assert_same_voice(made, create(file))


def test_a_voice_can_be_made_over_plain_http(server, infer):
    body = {
        "inputs": [
            {"name": "pcm", "datatype": "FP32", "shape": [1, 24000], "data": voice(24_000).tolist()},
            {"name": "ref_text", "datatype": "BYTES", "shape": [1, 1], "data": [TRANSCRIPT]},
        ]
    }
    url = f"http://127.0.0.1:{server.http_port}/v2/models/voice_encoder/infer"
    with urlopen(Request(url, json.dumps(body).encode()), timeout=PATIENCE_S) as response:
        outputs = {output["name"]: output for output in json.load(response)["outputs"]}
    made = infer("voice_encoder", pcm=voice(24_000), ref_text=[TRANSCRIPT.encode()])
    assert outputs["ref_codes"]["shape"] == [1, 13, 16]
    assert outputs["ref_codes"]["data"] == made.ref_codes.flatten().tolist()


@pytest.mark.parametrize(
    ("model", "inputs", "complaint"),
    [
        ("voice_encoder", {"pcm": voice(12_000), "x_vector_only": [True]}, "pcm lasts 0.50 s"),
        ("voice_encoder", {"pcm": voice(30_000) * np.float32("nan"), "x_vector_only": [True]}, "pcm holds"),
        ("voice_encoder", {"pcm": voice(30_000)}, "ref_text is missing"),
        ("create_voice", {"ref_audio": [wav(voice(30_000))]}, "ref_text is missing"),
        ("create_voice", {"ref_audio": [b"no audio at all"], "x_vector_only": [True]}, "ref_audio"),
    ],
)
def test_a_bad_reference_is_refused_by_name(infer, model, inputs, complaint):
    with pytest.raises(InferenceServerException, match=complaint) as refusal:
        infer(model, **inputs)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize("model", ["voice_encoder", "create_voice"])
def test_two_rows_are_refused(server, model):
    rows: Any = (
        np.zeros((2, 24_000), np.float32) if model == "voice_encoder" else np.array([[b"a"], [b"b"]], object)
    )
    name = "pcm" if model == "voice_encoder" else "ref_audio"
    given = triton.InferInput(name, rows.shape, np_to_triton_dtype(rows.dtype)).set_data_from_numpy(rows)
    with (
        triton.InferenceServerClient(grpc_address(server)) as client,
        pytest.raises(InferenceServerException) as refusal,
    ):
        client.infer(model, [given])
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


# --- the same voice as upstream's -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream(tiny_checkpoints: Path) -> Upstream:
    return Upstream(tiny_checkpoints / "base")


@pytest.mark.parametrize(
    "reference", [{"ref_text": TRANSCRIPT}, {"x_vector_only": True}], ids=lambda given: next(iter(given))
)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_a_file_becomes_the_voice_that_upstream_makes_of_it(
    infer, upstream, tmp_path, rate, channels, reference
):
    file = tmp_path / "recording.wav"
    file.write_bytes(written(humming(2.3, rate, channels), rate))
    theirs = upstream.voice_in(file, **reference)
    inputs = {
        name: [value.encode() if isinstance(value, str) else value] for name, value in reference.items()
    }
    ours = infer("create_voice", ref_audio=[file.read_bytes()], **inputs)
    num_frames = 0 if theirs.ref_codes is None else 29
    assert ours.ref_codes.shape == (num_frames, 16)
    if num_frames:
        np.testing.assert_array_equal(ours.ref_codes, theirs.ref_codes)
    # The same float32 arithmetic, but for the order of its sums, which the number of threads decides.
    np.testing.assert_allclose(ours.speaker_embedding, theirs.speaker_embedding, rtol=0, atol=1e-5)


# --- cloning in one request -------------------------------------------------------------------------------

SPOKEN = {"text": [b"Good morning."], "seed": np.array([5], np.int64), "max_frames": np.array([12], np.int32)}


@pytest.mark.parametrize("reference", [{"ref_text": [TRANSCRIPT.encode()]}, {"x_vector_only": [True]}])
def test_cloning_in_one_request_sounds_like_making_the_voice_first(infer, speak, reference):
    file = wav(voice(50_000))
    prompt = infer("create_voice", ref_audio=[file], **reference)
    in_two = {"speaker_embedding": prompt.speaker_embedding, "ref_codes": prompt.ref_codes}
    transcript = {name: text for name, text in reference.items() if name == "ref_text"}
    expected = audio_of(speak("qwen3_tts_base", **SPOKEN, **in_two, **transcript))
    assert_same_audio(
        audio_of(speak("qwen3_tts_voice_clone", **SPOKEN, ref_audio=[file], **reference)), expected
    )


def test_a_clone_is_heard_chunk_by_chunk(speak):
    chunks = speak("qwen3_tts_voice_clone", **SPOKEN, ref_audio=[wav(voice(50_000))], x_vector_only=[True])
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert len(chunks) > 1
    assert chunks[0].num_frames == 1
    assert len(audio_of(chunks)) == chunks[-1].num_frames * FRAME_SAMPLES


def test_a_clone_needs_a_transcript_or_less_ambition(speak):
    with pytest.raises(InferenceServerException, match="ref_text is missing"):
        speak("qwen3_tts_voice_clone", **SPOKEN, ref_audio=[wav(voice(50_000))])


def audio_of(chunks: list[Chunk]) -> NDArray[np.float32]:
    return np.concatenate([chunk.audio for chunk in chunks])
