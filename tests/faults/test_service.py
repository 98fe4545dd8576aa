"""Whatever breaks while callers are spoken to, each gets audio or an error in time, and then service again.

The bounds are those of docs/reliability.md: generous, for a busy machine; a quiet one takes seconds.
"""

from __future__ import annotations

import logging
import re
import resource
import time

import httpx
import psutil
import pytest

from calling import through_triton
from metrics_page import MetricsWatch, metrics_text, read_metrics
from outages import (
    GRANDPA,
    RESTING,
    SLOTS,
    SPEAKING,
    STRAIGHT_AT_TRITON,
    THROUGH_THE_GATEWAY,
    WORDS,
    Service,
)
from queries import asked, every_query
from qwen3_tts_client import EngineFailed, SpeechClient, SpeechError
from qwen3_tts_engine.launch.judging import MANY_FAILURES
from qwen3_tts_engine.launch.triton_http import Triton
from real_server import wait_until

pytestmark = pytest.mark.triton

logger = logging.getLogger(__name__)
WAIT_S = 20
BACK_S = 120


def test_a_model_process_that_is_killed(service: Service) -> None:
    with service.under_load(WAIT_S, BACK_S):
        service.stub().kill()


def test_a_model_process_that_is_killed_while_it_speaks_to_nobody_costs_the_others_nothing(
    service: Service,
) -> None:
    server, stub = service.footprint.group, service.stub(RESTING)
    with service.under_load(WAIT_S, BACK_S) as callers:
        stub.kill()
        wait_until(lambda: not service.is_ready(RESTING), "it is taken away")
        wait_until(service.speaks_as_grandpa, "its model speaks again", timeout_s=BACK_S)
    assert callers.errors() == []
    assert service.footprint.group == server
    assert read_metrics(service.system.config, RESTING)[SLOTS] == 16


def test_who_asks_a_dead_process_hears_of_it_and_costs_nobody_else_anything(service: Service) -> None:
    server = service.footprint
    num_regions = len(server.regions())
    with service.under_load(WAIT_S, BACK_S) as callers:
        service.stub(RESTING).kill()
        assert_told_within(WAIT_S, service)
    assert callers.errors() == []
    assert service.footprint.group == server.group
    # Triton never unloads a model that was asked so. What that leaves goes with the server.
    assert len(server.regions()) == num_regions + 1
    psutil.Process(server.group).kill()
    wait_until(service.speaks_as_grandpa, "the server is back", timeout_s=BACK_S)


@pytest.mark.slow
def test_who_asks_a_stopped_process_hears_of_it(service: Service) -> None:
    service.stub(RESTING).suspend()
    assert_told_within(2 * WAIT_S, service)


def assert_told_within(wait_s: float, service: Service) -> None:
    """The only caller of that model, of whom no gauge tells."""
    with SpeechClient(service.grpc_address, timeout_s=10 * WAIT_S) as tts:
        asked_s = time.monotonic()
        with pytest.raises(SpeechError):
            tts.synthesize(WORDS, voice="grandpa")
        waited_s = time.monotonic() - asked_s
    logger.info("waited %.1f s", waited_s)
    assert waited_s < wait_s
    wait_until(service.speaks_as_grandpa, "its model speaks again", timeout_s=BACK_S)


@pytest.mark.slow
def test_a_model_process_that_is_stopped(service: Service) -> None:
    with service.under_load(2 * WAIT_S, BACK_S):
        service.stub().suspend()


def test_a_step_that_raises_costs_those_who_were_in_it_and_nobody_else(service: Service) -> None:
    with service.under_load(WAIT_S, BACK_S) as callers:
        service.break_next_step("step_raises")
    assert 1 <= len(callers.errors()) <= 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_process_that_gets_no_more_memory(service: Service) -> None:
    stub = service.stub()
    long = through_triton(service.system.config.grpc_port, num_frames=1500)  # wants a larger cache
    with service.under_load(WAIT_S, BACK_S):
        stub.rlimit(psutil.RLIMIT_AS, (stub.memory_info().vms, resource.RLIM_INFINITY))
        service.break_next_step("memory_leaks")
        assert long()
    # A process that was refused memory once may fail the like of it for ever. Seen to fail often, it is
    # replaced as soon as it speaks to nobody.
    assert all(long() for _ in range(2 * MANY_FAILURES))
    wait_until(lambda: stub not in service.footprint.stubs(), "the process is replaced", timeout_s=BACK_S)
    wait_until(lambda: long() == "", "the longest are served, too", timeout_s=BACK_S)


def test_a_tritonserver_that_is_killed(service: Service) -> None:
    with service.under_load(WAIT_S, BACK_S):
        psutil.Process(service.footprint.group).kill()


@pytest.mark.slow
def test_a_tritonserver_that_is_stopped(service: Service) -> None:
    with service.under_load(2 * WAIT_S, BACK_S):
        psutil.Process(service.footprint.group).suspend()


def test_a_gateway_that_is_killed(service: Service) -> None:
    with service.under_load(WAIT_S, BACK_S) as callers:
        service.system.child("qwen3_tts_gateway").kill()
    assert callers.errors_of(*STRAIGHT_AT_TRITON) == []
    assert callers.errors_of(*THROUGH_THE_GATEWAY)


def test_a_model_that_is_loaded_anew_lets_those_it_speaks_to_hear_all(service: Service) -> None:
    server = service.footprint.group
    with service.under_load(WAIT_S, BACK_S) as callers, service.client() as tts:
        tts.models.load(SPEAKING, timeout_s=BACK_S)
    assert all(is_told_that_it_is_away(error) for error in callers.errors()), callers.errors()
    assert service.footprint.group == server


def test_a_voice_store_without_room_keeps_what_it_has_and_takes_more_once_there_is_room(
    service: Service,
) -> None:
    stub = service.stub("voices")
    with service.client() as tts:
        with service.under_load(WAIT_S, BACK_S) as callers:
            stub.rlimit(psutil.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # of any file that it writes
            with pytest.raises(EngineFailed, match="voice store"):
                tts.voices.save("grandma", GRANDPA)
            assert [voice.name for voice in tts.voices.list()] == ["grandpa"]
            stub.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert callers.errors() == []
        tts.voices.save("grandma", GRANDPA)
        tts.voices.delete("grandma")


def test_a_canary_is_answered_by_the_model_and_counted_as_nobodys(service: Service) -> None:
    watch = MetricsWatch(service.system.config)
    assert Triton(service.system.config, {}).answers_canary(SPEAKING)
    assert watch.moved(answered=0) == {}


def test_whatever_dashboard_alerts_and_autoscaler_ask_for_is_on_a_live_page(service: Service) -> None:
    assert [speak() for speak in service.everybody()] == [""] * 4
    config = service.system.config
    pages = [
        metrics_text(config),
        httpx.get(f"http://127.0.0.1:{service.system.supervisor_port}/metrics").text,
        httpx.get(f"{service.system.url}/metrics").text,
    ]
    shown = {*re.findall(r"^(?:# TYPE )?(\w+)[ {]", "\n".join(pages), flags=re.MULTILINE)}
    elsewhere = {"up"} | {name for _, query in every_query() for name in asked(query) if "nv_gpu" in name}
    for place, query in every_query():
        assert asked(query.strip()) - elsewhere <= shown, place


def is_told_that_it_is_away(error: str) -> bool:
    return error.startswith(("503", "ServerUnavailable")) and "Stream removed" not in error
