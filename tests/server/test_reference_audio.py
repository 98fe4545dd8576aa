"""`reference_audio` in the real server: every way in, every way out, and a decoder that dies."""

import base64
import io
import json
import urllib.request
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from qwen3_tts_engine.launch.server import Server
from real_server import Footprint, wait_until

pytestmark = pytest.mark.triton

MODEL = "reference_audio"


def file_of(samples: NDArray[Any], rate: int = 24_000, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return file.getvalue()


def tone(seconds: float = 1.5, rate: int = 24_000, level: float = 0.5) -> NDArray[np.float32]:
    time_s = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)


def as_input(*files: bytes) -> triton.InferInput:
    ref_audio = triton.InferInput("ref_audio", [len(files), 1], "BYTES")
    ref_audio.set_data_from_numpy(np.array(files, object).reshape(-1, 1))
    return ref_audio


def infer(server: Server, *files: bytes) -> tuple[NDArray[np.float32], float]:
    """`pcm` and `duration`; each file is a row."""
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        result = client.infer(MODEL, [as_input(*files)], client_timeout=60)
    return result.as_numpy("pcm")[0], result.as_numpy("duration").item()


def refusal(server: Server, *files: bytes) -> str:
    with pytest.raises(InferenceServerException) as refused:
        infer(server, *files)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    return str(refused.value.message())


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_a_file_becomes_samples_at_24_khz(server, form):
    pcm, duration_s = infer(server, file_of(tone(rate=48_000), 48_000, form))
    assert pcm.dtype == np.float32
    assert (len(pcm), duration_s) == (36_000, 1.5)
    assert np.abs(pcm[1000:-1000]).max() == pytest.approx(0.5, abs=0.05)


def test_base64_over_plain_http_is_the_file_itself(server):
    file = file_of(tone())
    url = "data:audio/wav;base64," + base64.b64encode(file).decode()
    body = {"inputs": [{"name": "ref_audio", "shape": [1, 1], "datatype": "BYTES", "data": [url]}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.http_port}/v2/models/{MODEL}/infer", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    np.testing.assert_allclose(outputs["pcm"], infer(server, file)[0], atol=1e-7)
    assert outputs["duration"] == [1.5]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([b""], "ref_audio is empty; it must be the bytes of a WAV"),
        ([b"%PDF-1.7"], "ref_audio is a PDF"),
        ([file_of(tone(0.5))], "ref_audio lasts 0.5 s; 1 to 30 s are allowed"),
        ([file_of(tone())[:-1000]], "cut short"),
        ([file_of(tone())] * 2, "ref_audio has 2 rows; this model takes one row a request"),
    ],
    ids=["empty", "PDF", "short", "cut", "two rows"],
)
def test_what_is_wrong_is_said(server, files, complaint):
    assert complaint in refusal(server, *files)


def test_what_was_refused_once_is_refused_again_in_the_same_words(server):
    file = file_of(tone(0.7))
    told = "INVALID_ARGUMENT: ref_audio lasts 0.7 s; 1 to 30 s are allowed"
    assert refusal(server, file) == refusal(server, file) == told


@pytest.mark.parametrize("output", ["pcm", "duration"])
def test_what_one_caller_does_not_ask_for_the_next_one_gets(server, output):
    file = file_of(tone(level=0.15 if output == "pcm" else 0.25))
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.infer(MODEL, [as_input(file)], outputs=[triton.InferRequestedOutput(output)])
    pcm, duration_s = infer(server, file)
    assert (len(pcm), duration_s) == (36_000, 1.5)


def test_the_model_outlives_its_decoders(server):
    decoders = [
        process
        for process in Footprint(server.process.pid).stubs()
        if "qwen3_tts_engine.reference_audio" in process.cmdline()
    ]
    assert len(decoders) == 2, "one beside each instance"
    for process in decoders:
        process.kill()
    wait_until(lambda: all(p.status() == psutil.STATUS_ZOMBIE for p in decoders), "the decoders die")
    for level in (0.1, 0.2, 0.3, 0.4):
        assert infer(server, file_of(tone(level=level)))[1] == 1.5
