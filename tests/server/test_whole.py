"""Whole utterances by `qwen3_tts`: any task, over whatever answers once, with the sound of the streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc, http
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    serialize_byte_tensor,
    shared_memory,
)

from callers import (
    FRAME_SAMPLES,
    ONE_PCM16_STEP,
    arrays,
    assert_same_audio,
    client_of,
    decode_wav,
    grpc_address,
    infer,
)
from qwen3_tts_client import ClonedVoice, SpeechClient
from qwen3_tts_engine.launch.server import Server
from recordings import humming, written

pytestmark = pytest.mark.triton

MODEL = "qwen3_tts"
MAX_FRAMES = 12
SPOKEN = {"text": "She said she would be here by noon.", "seed": 5, "max_frames": MAX_FRAMES}
TRANSCRIPT = "Once upon a time there was a king."
RECORDING = written(humming(2.2, seed=1))
GRANDPA = ClonedVoice(RECORDING, TRANSCRIPT)

DICE = np.random.default_rng(7)
SPEAKER = {"speaker": "ryan"}
DESCRIPTION = {"instruct": "A warm old storyteller."}
EMBEDDING = {"speaker_embedding": DICE.standard_normal((1, 64), np.float32)}
CODES = {"ref_codes": DICE.integers(0, 2048, (1, 25, 16), np.int32), "ref_text": TRANSCRIPT}
REFERENCE = {"ref_audio": RECORDING, "ref_text": TRANSCRIPT}
SAVED = {"voice": "grandpa"}

TASKS: dict[str, dict[str, Any]] = {
    "custom_voice": SPEAKER,
    "voice_design": DESCRIPTION,
    "base": EMBEDDING | CODES,
}


@pytest.fixture(scope="module", autouse=True)
def grandpa(server: Server) -> Iterator[SpeechClient]:
    """A saved voice; and the client that saved it."""
    with client_of(server) as tts:
        tts.voices.save("grandpa", GRANDPA)
        yield tts
        tts.voices.delete("grandpa")


# --- ways in ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """The one response, its tensors as plain values."""

    audio: NDArray[np.float32]
    encoded_audio: bytes
    sample_rate: int
    num_frames: int
    finish_reason: str

    @classmethod
    def in_(cls, result: Any, audio: NDArray[np.float32] | None = None) -> Whole:
        """tritonclient's results are alike, whatever brought them; what lies elsewhere comes along."""
        names = ("encoded_audio", "sample_rate", "num_frames", "finish_reason")
        encoded_audio, sample_rate, num_frames, finish_reason = (
            result.as_numpy(name).item() for name in names
        )
        audio = result.as_numpy("audio") if audio is None else audio
        return cls(audio[0], encoded_audio, sample_rate, num_frames, finish_reason.decode())


Way = Callable[..., Whole]


def over_grpc(server: Server, **inputs: Any) -> Whole:
    with grpc.InferenceServerClient(grpc_address(server)) as client:
        return Whole.in_(client.infer(MODEL, tensors(grpc, arrays(client, inputs, MODEL))))


def over_http(server: Server, **inputs: Any) -> Whole:
    with (
        grpc.InferenceServerClient(grpc_address(server)) as knowing,
        http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client,
    ):
        return Whole.in_(client.infer(MODEL, tensors(http, arrays(knowing, inputs, MODEL))))


def over_shared_memory(server: Server, **inputs: Any) -> Whole:
    """Every input goes there, and the audio comes back there, in the system's shared memory."""
    with grpc.InferenceServerClient(grpc_address(server)) as client:
        values = arrays(client, inputs, MODEL)
        asked = tensors(grpc, values)
        contents = [serialize_byte_tensor(a) if a.dtype == object else a for a in values.values()]
        sizes = [len(c.item()) if c.dtype == object else c.nbytes for c in contents]
        room = MAX_FRAMES * FRAME_SAMPLES * 4
        with region(client, sum(sizes)) as (inside, there), region(client, room) as (outside, back):
            shared_memory.set_shared_memory_region(there, contents)
            for tensor, size, end in zip(asked, sizes, np.cumsum(sizes).tolist(), strict=True):
                tensor.set_shared_memory(inside, size, end - size)
            outputs = [
                grpc.InferRequestedOutput(output.name) for output in client.get_model_metadata(MODEL).outputs
            ]
            next(output for output in outputs if output.name() == "audio").set_shared_memory(outside, room)
            result = client.infer(MODEL, asked, outputs=outputs)
            shape = list(result.get_output("audio").shape)
            return Whole.in_(result, shared_memory.get_contents_as_numpy(back, np.float32, shape).copy())


def tensors(kind: Any, values: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Inputs of one of tritonclient's modules."""
    return [
        kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
        for name, array in values.items()
    ]


@contextmanager
def region(client: grpc.InferenceServerClient, size: int) -> Iterator[tuple[str, Any]]:
    """The name and the handle of shared memory that the server knows."""
    name = f"qwen3_tts_test_{uuid4().hex}"
    handle = shared_memory.create_shared_memory_region(name, f"/{name}", size)
    client.register_system_shared_memory(name, f"/{name}", size)
    try:
        yield name, handle
    finally:
        client.unregister_system_shared_memory(name)
        shared_memory.destroy_shared_memory_region(handle)


def streamed(server: Server, model: str, **inputs: Any) -> NDArray[np.float32]:
    """What the decoupled model says, its chunks joined."""
    return np.concatenate([chunk.audio for chunk in infer(server, model=model, **SPOKEN, **inputs)])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("way", [over_grpc, over_http, over_shared_memory])
def test_a_whole_utterance_is_the_stream_in_one_response(server: Server, way: Way, task: str) -> None:
    spoken = way(server, task=task, **SPOKEN, **TASKS[task])
    assert_same_audio(spoken.audio, streamed(server, f"qwen3_tts_{task}", **TASKS[task]))
    assert spoken.num_frames == len(spoken.audio) // FRAME_SAMPLES
    assert (spoken.sample_rate, spoken.finish_reason, spoken.encoded_audio) == (24000, "length", b"")


def test_a_whole_utterance_can_be_had_as_a_file(server: Server) -> None:
    file = over_grpc(server, audio_encoding="wav_base64", **SPOKEN)
    assert file.audio.size == 0
    assert_same_audio(decode_wav(file.encoded_audio), over_grpc(server, **SPOKEN).audio, ONE_PCM16_STEP)


# --- which task -------------------------------------------------------------------------------------------


TOLD_BY: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "nothing else": ({}, "qwen3_tts_custom_voice", {}),
    "a speaker": (SPEAKER, "qwen3_tts_custom_voice", SPEAKER),
    "a speaker and an instruction": (SPEAKER | DESCRIPTION, "qwen3_tts_custom_voice", SPEAKER | DESCRIPTION),
    "an instruction alone": (DESCRIPTION, "qwen3_tts_voice_design", DESCRIPTION),
    "an instruction and an empty speaker": (
        {"speaker": "", **DESCRIPTION},
        "qwen3_tts_voice_design",
        DESCRIPTION,
    ),
    "an instruction, but custom_voice is asked for": (
        {"task": "custom_voice", **DESCRIPTION},
        "qwen3_tts_custom_voice",
        DESCRIPTION,
    ),
    "a saved voice": (SAVED, "qwen3_tts_base", SAVED),
    "an embedding": (EMBEDDING, "qwen3_tts_base", EMBEDDING),
    "an embedding and codes": (EMBEDDING | CODES, "qwen3_tts_base", EMBEDDING | CODES),
    "a recording": (REFERENCE, "qwen3_tts_base", SAVED),
    "a recording's timbre": (
        {"ref_audio": RECORDING, "x_vector_only": True},
        "qwen3_tts_base",
        {"voice": "grandpa(1)"},  # a mix of one: the embedding alone
    ),
}


@pytest.mark.parametrize(("given", "model", "inputs"), TOLD_BY.values(), ids=TOLD_BY)
def test_the_task_is_told_by_what_comes_along(
    server: Server, given: dict[str, Any], model: str, inputs: dict[str, Any]
) -> None:
    assert_same_audio(over_grpc(server, **SPOKEN, **given).audio, streamed(server, model, **inputs))


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"task": "singing"}, "task is 'singing'; it must be one of custom_voice, voice_design, base"),
    ({"task": "custom_voice", **SAVED}, "voice is given and task is custom_voice"),
    ({"task": "voice_design", **DESCRIPTION, **EMBEDDING}, "speaker_embedding is given and task is voice_de"),
    ({"task": "custom_voice", **REFERENCE}, "ref_audio is given and task is custom_voice"),
    ({"task": "voice_design", **DESCRIPTION, **SPEAKER}, "speaker is given and task is voice_design"),
    ({"task": "base", **SAVED, **SPEAKER}, "speaker is given and task is base"),
    ({**SAVED, **SPEAKER}, "speaker is given and task is base"),
    ({**EMBEDDING, **DESCRIPTION}, "instruct is given and task is base"),
    ({**SAVED, **EMBEDDING}, "voice and speaker_embedding are given; they name more than one voice"),
    ({**SAVED, **REFERENCE}, "ref_audio and voice are given; they name more than one voice"),
    ({**EMBEDDING, **REFERENCE}, "ref_audio and speaker_embedding are given; they name more than one voice"),
    ({**REFERENCE, **CODES}, "ref_audio and ref_codes are given; they name more than one voice"),
    ({**SAVED, **CODES}, "voice and ref_codes are given; they name more than one voice"),
    (CODES, "ref_codes is given without speaker_embedding; a voice has both"),
]


@pytest.mark.parametrize(
    ("given", "message"), CONTRADICTIONS, ids=[message[:40] for _, message in CONTRADICTIONS]
)
def test_inputs_that_contradict_each_other_are_refused_by_name(
    server: Server, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as refusal:
        over_grpc(server, **SPOKEN, **given)
    assert refusal.value.status() == "StatusCode.INVALID_ARGUMENT"


# --- errors -----------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown voice": (
        {**SPOKEN, "voice": "nobody"},
        "NOT_FOUND",
        "there is no voice named 'nobody'",
    ),
    "a voice that the store lost": ({**SPOKEN, "voice": "lost"}, "INTERNAL", "voice 'lost' damaged"),
    "an unknown language": (
        {**SPOKEN, "language": "Klingon"},
        "INVALID_ARGUMENT",
        "language is 'Klingon'; this model has Auto",
    ),
    "nothing to say": ({**SPOKEN, "text": " "}, "INVALID_ARGUMENT", "text is empty; say at least one word"),
    "no recording": (
        {**SPOKEN, "ref_audio": b"%PDF-1.7", "ref_text": TRANSCRIPT},
        "INVALID_ARGUMENT",
        "ref_audio is a PDF",
    ),
    "a recording without its words": (
        {**SPOKEN, "ref_audio": RECORDING},
        "INVALID_ARGUMENT",
        "ref_text is missing",
    ),
    "an input of another task": (
        {**SPOKEN, **SPEAKER, "ref_text": TRANSCRIPT},
        "INVALID_ARGUMENT",
        "unexpected inference input 'ref_text'",
    ),
    "a text that is no UTF-8": (
        {**SPOKEN, "text": b"Hello \xff"},
        "INVALID_ARGUMENT",
        "text is not valid UTF-8",
    ),
}
HTTP_STATUS = {"NOT_FOUND": "404", "INTERNAL": "500", "INVALID_ARGUMENT": "400"}


@pytest.fixture(scope="module")
def lost_voice(server: Server, grandpa: SpeechClient) -> Iterator[None]:
    """A voice whose file is gone."""
    objects = Path(server.config.environment["VOICE_STORE"], "objects")
    before = set(objects.iterdir())
    grandpa.voices.save("lost", ClonedVoice(RECORDING, "Other words."))
    [file] = set(objects.iterdir()) - before
    file.unlink()
    yield
    grandpa.voices.delete("lost")


@pytest.mark.usefixtures("lost_voice")
@pytest.mark.parametrize(("inputs", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_an_error_of_the_model_that_speaks_keeps_its_kind_and_its_words(
    server: Server, inputs: dict[str, Any], code: str, message: str
) -> None:
    for way, status in ((over_grpc, f"StatusCode.{code}"), (over_http, HTTP_STATUS[code])):
        with pytest.raises(InferenceServerException, match=message) as refusal:
            way(server, **inputs)
        assert refusal.value.status() == status


# --- company ----------------------------------------------------------------------------------------------


def test_more_callers_than_instances_hear_what_each_hears_alone(server: Server) -> None:
    asked = [
        {**SPOKEN, **inputs, "seed": seed}
        for seed in range(4)
        for inputs in (SPEAKER, DESCRIPTION, SAVED, REFERENCE)
    ]
    alone = [over_grpc(server, **inputs).audio for inputs in asked]
    with ThreadPoolExecutor(len(asked)) as callers:
        together = list(callers.map(lambda inputs: over_grpc(server, **inputs).audio, asked))
    for one, other in zip(together, alone, strict=True):
        assert_same_audio(one, other)
