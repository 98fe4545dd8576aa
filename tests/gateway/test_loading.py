"""Models are loaded when somebody needs them, once, and go when nobody has needed them for a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from fakes.triton_server import FakeTriton, says, triton
from gateway_server import running_gateway, settings
from qwen3_tts_client import AsyncSpeechClient, EngineFailed, InvalidRequest, ServerUnavailable
from qwen3_tts_gateway import loading
from qwen3_tts_gateway.loading import ModelKeeper
from real_server import ROOT, clean_server, on_free_ports, wait_until

TALKER = "qwen3_tts_custom_voice"
BASE = "qwen3_tts_base"
HOUR_S = 3600.0


class HandClock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def empty_triton() -> Iterator[FakeTriton]:
    """Has everything and has loaded nothing."""
    names = (TALKER, "qwen3_tts_voice_design", BASE, "create_voice", "voices")
    parts = {"create_voice": ("reference_audio", "voice_encoder")}
    with triton(says(3), models=(), repository=(*names, *parts["create_voice"]), parts=parts) as fake:
        yield fake


@pytest_asyncio.fixture
async def tts(empty_triton: FakeTriton) -> AsyncIterator[AsyncSpeechClient]:
    async with AsyncSpeechClient(empty_triton.url) as client:
        yield client


@pytest_asyncio.fixture
async def keeper(tts: AsyncSpeechClient, clock: HandClock) -> AsyncIterator[ModelKeeper]:
    """Lets a model go after an idle hour."""
    keeper = ModelKeeper(tts, preloaded=False, unload_after_s=HOUR_S, clock=clock)
    yield keeper
    await keeper.close()


async def use(keeper: ModelKeeper, model: str = TALKER) -> None:
    async with keeper.using(model):
        pass


async def begin_to_use(keeper: ModelKeeper, fake: FakeTriton, num_users: int) -> list[asyncio.Task[None]]:
    """So many who wait for the talker, whose loading waits for `fake.gates`."""
    fake.gates[TALKER] = threading.Event()
    users = [asyncio.create_task(use(keeper)) for _ in range(num_users)]
    await asyncio.to_thread(wait_until, lambda: TALKER in fake.loading, "the talker is being loaded")
    return users


async def test_many_who_need_a_model_at_once_load_it_once(
    keeper: ModelKeeper, empty_triton: FakeTriton
) -> None:
    users = await begin_to_use(keeper, empty_triton, 8)
    empty_triton.gates[TALKER].set()
    await asyncio.gather(*users)
    await use(keeper)
    assert empty_triton.history == [f"load {TALKER}"]


async def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next(
    keeper: ModelKeeper, empty_triton: FakeTriton
) -> None:
    empty_triton.broken[TALKER] = "no weights"
    users = await begin_to_use(keeper, empty_triton, 8)
    empty_triton.gates[TALKER].set()
    for outcome in await asyncio.gather(*users, return_exceptions=True):
        assert isinstance(outcome, EngineFailed)
        assert "no weights" in str(outcome)
    assert empty_triton.history == [f"load {TALKER}"]
    del empty_triton.broken[TALKER]
    await use(keeper)
    assert empty_triton.history == [f"load {TALKER}"] * 2


async def test_who_hangs_up_does_not_end_the_load_for_the_others(
    keeper: ModelKeeper, empty_triton: FakeTriton
) -> None:
    first, second = await begin_to_use(keeper, empty_triton, 2)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    empty_triton.gates[TALKER].set()
    await second
    assert empty_triton.history == [f"load {TALKER}"]


async def test_a_model_whose_only_user_hung_up_while_it_was_loaded_is_idle(
    keeper: ModelKeeper, empty_triton: FakeTriton, clock: HandClock
) -> None:
    [user] = await begin_to_use(keeper, empty_triton, 1)
    user.cancel()
    empty_triton.gates[TALKER].set()
    await asyncio.gather(*keeper._loads.values())
    clock.now_s += HOUR_S
    assert await keeper.unload_idle() == [TALKER]


async def test_a_model_that_another_gateway_is_loading_is_waited_for(
    keeper: ModelKeeper, tts: AsyncSpeechClient, empty_triton: FakeTriton, clock: HandClock
) -> None:
    another = ModelKeeper(tts, preloaded=False, clock=clock)
    [theirs] = await begin_to_use(another, empty_triton, 1)
    ours = asyncio.create_task(use(keeper))
    await asyncio.to_thread(wait_until, lambda: empty_triton.looks[TALKER] > 2, "we look, too")
    empty_triton.gates[TALKER].set()
    await asyncio.gather(ours, theirs)
    assert empty_triton.history == [f"load {TALKER}"]


async def test_a_load_that_was_cut_short_is_waited_for(
    keeper: ModelKeeper, tts: AsyncSpeechClient, empty_triton: FakeTriton, clock: HandClock
) -> None:
    earlier = ModelKeeper(tts, preloaded=False, clock=clock)
    [user] = await begin_to_use(earlier, empty_triton, 1)
    await earlier.close()
    await asyncio.gather(user, return_exceptions=True)
    ours = asyncio.create_task(use(keeper))
    await asyncio.to_thread(wait_until, lambda: empty_triton.looks[TALKER] > 2, "we look")
    empty_triton.gates[TALKER].set()
    await ours
    assert empty_triton.history == [f"load {TALKER}"]


async def test_closing_waits_for_no_load(keeper: ModelKeeper, empty_triton: FakeTriton) -> None:
    [user] = await begin_to_use(keeper, empty_triton, 1)
    await keeper.close()
    assert (await asyncio.gather(user, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    empty_triton.gates[TALKER].set()


async def test_a_model_that_there_is_not_cannot_be_used(keeper: ModelKeeper) -> None:
    with pytest.raises(InvalidRequest, match="has no model 'qwen4'"):
        await use(keeper, "qwen4")


async def test_an_idle_model_goes_after_the_time_it_was_given_and_not_before(
    keeper: ModelKeeper, empty_triton: FakeTriton, clock: HandClock
) -> None:
    await use(keeper)
    clock.now_s += HOUR_S - 1
    assert await keeper.unload_idle() == []
    clock.now_s += 1
    assert await keeper.unload_idle() == [TALKER]
    assert empty_triton.history == [f"load {TALKER}", f"unload {TALKER}"]
    assert await keeper.unload_idle() == []


async def test_whoever_uses_a_model_keeps_it_for_another_while(keeper: ModelKeeper, clock: HandClock) -> None:
    await use(keeper)
    clock.now_s += HOUR_S - 1
    await use(keeper)
    clock.now_s += HOUR_S - 1
    assert await keeper.unload_idle() == []


async def test_what_is_in_use_stays_however_long_it_takes(
    keeper: ModelKeeper, empty_triton: FakeTriton, clock: HandClock
) -> None:
    async with keeper.using(TALKER):
        await use(keeper)
        clock.now_s += 2 * HOUR_S
        assert await keeper.unload_idle() == []
    assert await keeper.unload_idle() == []
    assert empty_triton.models == [TALKER]


async def test_who_needs_a_model_that_is_going_waits_and_loads_it_anew(
    keeper: ModelKeeper, empty_triton: FakeTriton, clock: HandClock
) -> None:
    await use(keeper)
    clock.now_s += HOUR_S
    going = asyncio.create_task(keeper.unload_idle())
    await asyncio.to_thread(wait_until, lambda: TALKER in empty_triton.unloading, "the talker goes")
    await use(keeper)
    assert await going == [TALKER]
    assert empty_triton.history == [f"load {TALKER}", f"unload {TALKER}", f"load {TALKER}"]
    assert empty_triton.most_copies == 1


async def test_an_ensemble_takes_its_parts_along(
    keeper: ModelKeeper, empty_triton: FakeTriton, clock: HandClock
) -> None:
    await use(keeper, "create_voice")
    assert empty_triton.models == ["reference_audio", "voice_encoder", "create_voice"]
    clock.now_s += HOUR_S
    assert await keeper.unload_idle() == ["create_voice"]
    assert empty_triton.models == []
    assert empty_triton.history[1] == "unload create_voice"  # nobody meets it without its parts


async def test_a_model_that_does_not_go_does_not_keep_the_others(
    keeper: ModelKeeper, empty_triton: FakeTriton, clock: HandClock
) -> None:
    for model in (TALKER, BASE):
        await use(keeper, model)
    empty_triton.models.remove(TALKER)  # and from the repository: somebody deleted its folder
    empty_triton.repository = tuple(name for name in empty_triton.repository if name != TALKER)
    clock.now_s += HOUR_S
    assert await keeper.unload_idle() == [BASE]


async def test_while_triton_is_away_nothing_is_loaded_or_unloaded(clock: HandClock) -> None:
    with triton(says(1), models=(TALKER,)) as fake:
        tts = AsyncSpeechClient(fake.url)
        keeper = ModelKeeper(tts, preloaded=False, unload_after_s=HOUR_S, clock=clock)
        await use(keeper)
    clock.now_s += HOUR_S
    assert await keeper.unload_idle() == []
    with pytest.raises(ServerUnavailable):
        await use(keeper)
    await tts.close()


@pytest.mark.parametrize("unload_after_s", [None, HOUR_S])
async def test_with_preloading_a_keeper_does_nothing(
    tts: AsyncSpeechClient, empty_triton: FakeTriton, clock: HandClock, unload_after_s: float | None
) -> None:
    keeper = ModelKeeper(tts, preloaded=True, unload_after_s=unload_after_s, clock=clock)
    await use(keeper)
    clock.now_s += 2 * HOUR_S
    assert await keeper.unload_idle() == []
    assert empty_triton.history == []


async def test_without_a_time_given_models_stay(
    tts: AsyncSpeechClient, empty_triton: FakeTriton, clock: HandClock
) -> None:
    keeper = ModelKeeper(tts, preloaded=False, clock=clock)
    await use(keeper)
    clock.now_s += 1000 * HOUR_S
    assert await keeper.unload_idle() == []
    await keeper.keep_tidy()  # has nothing to wait for


@pytest.fixture
def http(empty_triton: FakeTriton) -> Iterator[httpx.Client]:
    """A client of a gateway that loads on first use."""
    gateway_settings = settings(triton_grpc_port=empty_triton.port, preload_models=False)
    with (
        running_gateway(gateway_settings) as gateway,
        httpx.Client(base_url=gateway.url, timeout=30) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("path", "text", "voice"),
    [("/v1/audio/speech", "input", "voice"), ("/api/v1/custom-voice/generate", "text", "speaker")],
    ids=["OpenAI", "original"],
)
def test_names_are_not_resolved_before_the_voices_model_can_tell_them_apart(
    http: httpx.Client, empty_triton: FakeTriton, path: str, text: str, voice: str
) -> None:
    for name in ("grandpa", "ryan", "coral"):
        assert http.post(path, json={text: "Hello.", voice: name}).status_code == 200
    assert empty_triton.history == ["load voices", f"load {BASE}", f"load {TALKER}"]
    assert [call.request.model_name for call in empty_triton.calls] == [BASE, TALKER, TALKER]


def test_a_recording_loads_what_listens_and_what_speaks(http: httpx.Client, empty_triton: FakeTriton) -> None:
    body = {"input": "Hello.", "ref_audio": "UklGRg==", "x_vector_only_mode": True}
    assert http.post("/v1/audio/speech", json=body).status_code == 200
    assert empty_triton.history == ["load create_voice", f"load {BASE}"]


def test_an_embedding_is_kept_without_loading_what_listens(
    http: httpx.Client, empty_triton: FakeTriton
) -> None:
    form = {"name": "grandpa", "speaker_embedding": "[0.1, 0.2]"}
    http.post("/v1/audio/voices", data=form).raise_for_status()
    assert empty_triton.history == ["load voices"]
    http.post("/v1/audio/voices", data={"name": "me"}, files={"audio_sample": b"RIFF"}).raise_for_status()
    assert empty_triton.history == ["load voices", "load create_voice"]


def test_the_health_page_shows_a_model_being_loaded(http: httpx.Client, empty_triton: FakeTriton) -> None:
    def state() -> tuple[bool, str]:
        health = http.get("/health/models").json()
        return health["custom_voice_loaded"], health["models"][TALKER]["state"]

    assert state() == (False, "UNAVAILABLE")
    empty_triton.gates[TALKER] = threading.Event()
    with ThreadPoolExecutor() as callers:
        body = {"text": "Hello.", "speaker": "ryan"}
        speaking = callers.submit(http.post, "/api/v1/custom-voice/generate", json=body)
        wait_until(lambda: state() == (False, "LOADING"), "the page shows it")
        empty_triton.gates[TALKER].set()
        assert speaking.result().status_code == 200
    assert state() == (True, "READY")


def test_the_health_page_shows_why_a_model_could_not_be_loaded(
    http: httpx.Client, empty_triton: FakeTriton
) -> None:
    empty_triton.broken[TALKER] = "no weights"
    body = {"input": "Hello.", "voice": "ryan"}
    response = http.post("/v1/audio/speech", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")
    model = http.get("/health/models").json()["models"][TALKER]
    assert model == {"state": "UNAVAILABLE", "reason": "no weights"}


def test_a_gateway_unloads_what_is_idle_by_itself(
    empty_triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOOK_EVERY_S", 0.0)
    fields = {"preload_models": False, "unload_after_minutes": 1e-6}
    with running_gateway(settings(triton_grpc_port=empty_triton.port, **fields)) as gateway:
        body = {"input": "Hello.", "instructions": "a warm old storyteller"}
        assert httpx.post(f"{gateway.url}/v1/audio/speech", json=body).status_code == 200
        wait_until(lambda: not empty_triton.models, "nothing is loaded any more")


@pytest.mark.triton
def test_the_first_to_speak_has_the_real_server_load_what_it_takes(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    config = on_free_ports(
        model_repository=ROOT / "model_repository",
        log_path=tmp_path / "tritonserver.log",
        preload_models=False,
        environment={"VOICE_STORE": str(tmp_path / "voices")},
    )
    with (
        clean_server(config) as server,
        running_gateway(settings(triton_grpc_port=server.grpc_port, preload_models=False)) as gateway,
        httpx.Client(base_url=gateway.url, timeout=120) as http,
    ):
        assert not http.get("/health/models").json()["custom_voice_loaded"]
        body = {"input": "Hello.", "voice": "vivian", "response_format": "pcm", "max_new_tokens": 5}
        response = http.post("/v1/audio/speech", json=body)
        assert response.status_code == 200, response.text
        assert len(response.content) == 4 * 1920 * 2
        health = http.get("/health/models").json()
        ready = {name for name, model in health["models"].items() if model["state"] == "READY"}
        assert ready == {TALKER, "voices"}
