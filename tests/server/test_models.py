"""Models come and go while the server runs: it starts empty, speaks with what is loaded, and never twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from callers import assert_same_audio, client_of, grpc_address, sound_alike, tensors
from qwen3_tts_client import DesignedVoice, EngineFailed, ServerUnavailable, SpeechClient
from qwen3_tts_engine.config import CHECKPOINT_VARIABLES
from qwen3_tts_engine.launch.server import Server
from real_server import ROOT, Footprint, clean_server, on_free_ports, wait_until

pytestmark = pytest.mark.triton

CUSTOM_VOICE, VOICE_DESIGN = "qwen3_tts_custom_voice", "qwen3_tts_voice_design"
TEXT = "Hello world."
STORYTELLER = DesignedVoice("A warm old storyteller.")
# Always the likeliest code, and the likelier for having been spoken: it repeats itself up to the cap.
LONG = {"do_sample": False, "subtalker_do_sample": False, "repetition_penalty": 0.05, "max_frames": 600}

# The first thing a model process does here: it writes down how many others of its model are alive. That is
# exact, where a look from outside may come too late.
ROLL_CALL = """
import psutil
from pathlib import Path

commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
with Path("{path}").open("a") as roll_call:
    roll_call.write(str(sum(__file__ in command for command in commands) - 1) + " ")
"""


@pytest.fixture(scope="module")
def roll_call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each process of CUSTOM_VOICE, one after the other: how many others it met."""
    return tmp_path_factory.mktemp("roll_call") / "others"


@pytest.fixture(scope="module")
def server(
    tiny_checkpoints: Path, roll_call: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that was started with PRELOAD_MODELS=false; a model is there once a test has loaded it."""
    directory = tmp_path_factory.mktemp("server")
    repository = shutil.copytree(ROOT / "model_repository", directory / "models")
    model_py = repository / CUSTOM_VOICE / "1" / "model.py"
    model_py.write_text(ROLL_CALL.format(path=roll_call) + model_py.read_text())
    checkpoints = {variable: str(tiny_checkpoints / task) for task, variable in CHECKPOINT_VARIABLES.items()}
    config = on_free_ports(
        {**checkpoints, "VOICE_STORE": str(directory / "voices")},
        preload_models=False,
        model_repository=repository,
        log_path=directory / "tritonserver.log",
    )
    with clean_server(config) as server:
        yield server


@pytest.fixture(scope="module")
def tts(server: Server) -> Iterator[SpeechClient]:
    with client_of(server) as client:
        yield client


def load_once(tts: SpeechClient, name: str) -> None:
    if not tts.models.ready(name):
        tts.models.load(name)


def state_of(tts: SpeechClient, name: str) -> str:
    [state] = [model.state for model in tts.models.list() if model.name == name]
    return state


def say(tts: SpeechClient) -> NDArray:
    return tts.synthesize(TEXT, seed=3, max_frames=12).samples


# --- a server that starts empty ---------------------------------------------------------------------------


def test_without_preloading_nothing_is_loaded_and_what_is_loaded_then_speaks(
    server: Server, tts: SpeechClient
) -> None:
    models = tts.models.list()
    assert {model.name for model in models} == {path.name for path in (ROOT / "model_repository").iterdir()}
    assert {model.state for model in models} == {"UNAVAILABLE"}
    assert Footprint(server.process.pid).stubs() == []
    with pytest.raises(ServerUnavailable, match=f"unknown model: '{CUSTOM_VOICE}'"):
        tts.synthesize(TEXT)
    assert tts.models.load(CUSTOM_VOICE).is_ready
    assert tts.synthesize(TEXT, max_frames=2).num_frames == 2
    assert {model.name for model in tts.models.list() if model.is_ready} == {CUSTOM_VOICE}


def test_a_whole_utterance_of_a_task_that_is_not_loaded_is_unavailable(
    server: Server, tts: SpeechClient
) -> None:
    load_once(tts, "qwen3_tts")
    with triton.InferenceServerClient(grpc_address(server)) as client:
        inputs = tensors(client, {"text": TEXT, "task": "base", "voice": "grandpa"}, "qwen3_tts")
        with pytest.raises(InferenceServerException, match="qwen3_tts_base") as refusal:
            client.infer("qwen3_tts", inputs)
    assert refusal.value.status() == "StatusCode.UNAVAILABLE"


# --- another checkpoint in the same place -----------------------------------------------------------------


@dataclass(frozen=True)
class Swap:
    """What one request sounded like; and how many other processes each new one of the model met."""

    before: NDArray
    meanwhile: NDArray
    after: NDArray
    others_alive: list[str]


@pytest.fixture(scope="module")
def swap(tts: SpeechClient, roll_call: Path, tmp_path_factory: pytest.TempPathFactory) -> Swap:
    """Another checkpoint comes in the place of the configured one, and goes."""
    from qwen3_tts_engine.tiny import build

    other = build(tmp_path_factory.mktemp("checkpoints"), "custom_voice", seed=99)
    load_once(tts, CUSTOM_VOICE)
    before = say(tts)
    roll_call.unlink()
    tts.models.load(CUSTOM_VOICE, checkpoint=str(other))
    meanwhile = say(tts)
    tts.models.load(CUSTOM_VOICE)
    return Swap(before, meanwhile, say(tts), roll_call.read_text().split())


def test_with_another_checkpoint_the_same_request_sounds_different(swap: Swap) -> None:
    assert not sound_alike(swap.meanwhile, swap.before)


def test_loaded_without_a_checkpoint_the_configured_one_is_back(swap: Swap) -> None:
    assert_same_audio(swap.after, swap.before)


def test_a_model_process_begins_only_when_the_one_before_has_ended(swap: Swap) -> None:
    assert swap.others_alive == ["0", "0"]


# --- what cannot be loaded --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "reason"),
    [
        ("/nowhere/to/be/found", "there is no checkpoint directory /nowhere/to/be/found"),
        (str(ROOT / "checkpoints/tiny/base"), "is a base checkpoint; this model needs voice_design"),
    ],
    ids=["nonexistent", "another task's"],
)
def test_a_load_that_fails_says_why_and_the_other_models_speak_on(
    tts: SpeechClient, checkpoint: str, reason: str
) -> None:
    load_once(tts, CUSTOM_VOICE)
    before = say(tts)
    with pytest.raises(EngineFailed, match=reason):
        tts.models.load(VOICE_DESIGN, checkpoint=checkpoint)
    [failed] = [model for model in tts.models.list() if model.name == VOICE_DESIGN]
    assert failed.state == "UNAVAILABLE"
    assert reason in failed.reason
    with pytest.raises(ServerUnavailable, match=VOICE_DESIGN):
        tts.synthesize(TEXT, STORYTELLER)
    assert_same_audio(say(tts), before)


# --- leaving ----------------------------------------------------------------------------------------------


def test_a_model_that_is_unloaded_ends_its_last_utterance_and_its_process(
    server: Server, tts: SpeechClient
) -> None:
    load_once(tts, CUSTOM_VOICE)
    footprint = Footprint(server.process.pid)
    assert len(footprint.stubs_of(CUSTOM_VOICE)) == 1
    with ThreadPoolExecutor() as pool, tts.stream(TEXT, **LONG) as speech:
        next(speech)
        unloading = pool.submit(tts.models.unload, CUSTOM_VOICE)
        wait_until(lambda: state_of(tts, CUSTOM_VOICE) == "UNLOADING", "the model is leaving")
        with pytest.raises(ServerUnavailable, match=CUSTOM_VOICE):
            tts.synthesize("Too late.")
        assert not unloading.done()
        speech.read()
        assert (speech.num_frames, speech.finish_reason) == (600, "length")
        unloading.result()
    assert footprint.stubs_of(CUSTOM_VOICE) == []
    assert state_of(tts, CUSTOM_VOICE) == "UNAVAILABLE"
