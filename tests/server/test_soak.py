"""The short forms of `make soak` and `make overload`, and that a soak fails on what it is to find."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

from fakes.triton_server import MODEL_INPUTS, RefusalError, chunk, final, samples_of, triton
from metrics_page import metrics_at_rest
from real_server import ROOT

sys.path.insert(0, str(ROOT / "perf"))

from crowd import NONSENSE, SPEAK, Ledger, call_until, groups, saved_voice
from overload import Callers, Pressure
from soak import Filling, Growth, Look, Soak, silence_by_third, soak

NOTHING_GREW = Growth("triton", 0, 0.0, 0.0, 0, 0)
MIB = 1 << 20


@pytest.mark.triton
def test_some_seconds_of_everything_at_once_leave_nothing_wrong(server, real_gateway):
    found = soak(
        server,
        real_gateway.url,
        os.getpid(),
        seconds=4,
        callers=2,
        gateway_callers=1,
        look_every_s=0.2,
    )
    kinds = {kind for kind, _ in found.ledger.done}
    assert found.ledger.complaints == []
    assert kinds == {"speaker", "designed", "cloned", "cloned, x-vector", "saved", "mixed"}
    assert found.ledger.num_verified > 10
    assert found.more_regions <= 0
    assert {growth.process for growth in found.growth} >= {"tritonserver", "gateway", "qwen3_tts_base"}


class Deceiver:
    """A Triton that speaks well until it is told to do something else."""

    def __init__(self) -> None:
        self.speak = self.well

    def __call__(self, call):
        given = call.inputs.keys()
        bad = given & {"temperature", "top_p", "repetition_penalty", "language"}
        if bad or not call.array("max_frames").item():
            raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "nonsense")
        yield from self.speak()

    def well(self):
        yield from (chunk(index) for index in range(3))
        yield final(chunk(3, finish_reason="stop"))

    def with_a_hole(self):
        yield from (chunk(index) for index in (0, 1))
        yield final(chunk(3, finish_reason="stop"))

    def with_a_chunk_twice(self):
        yield from (chunk(index) for index in (0, 1, 1, 2))
        yield final(chunk(3, finish_reason="stop"))

    def with_a_hole_that_does_not_show(self):
        yield from (chunk(index, samples=samples_of(index + index // 2)) for index in range(2))
        yield final(chunk(2, samples=samples_of(3), finish_reason="stop"))

    def out_of_order(self):
        yield from (chunk(index, samples=samples_of(other)) for index, other in enumerate((0, 2, 1)))
        yield final(chunk(3, finish_reason="stop"))

    def in_another_voice(self):
        yield from (chunk(index, samples=samples_of(index) * np.float32(0.9)) for index in range(3))
        yield final(chunk(3, samples=samples_of(3) * np.float32(0.9), finish_reason="stop"))


class AfterDeeds:
    """Over once everybody together has done so much, or somebody ends it."""

    def __init__(self, most: int) -> None:
        self._more = iter(range(most))
        self._is_ended = False

    def is_set(self) -> bool:
        return self._is_ended or next(self._more, None) is None

    def set(self) -> None:
        self._is_ended = True


def complaints_about(way: str) -> Ledger:
    deceiver = Deceiver()
    with triton(deceiver, models=tuple(MODEL_INPUTS)) as fake, saved_voice(fake.url), ExitStack() as stack:
        alone = groups(fake.url, None, callers=1, gateway_callers=0)
        callers = [caller for group in alone for caller in stack.enter_context(group.gathered())]
        deceiver.speak = getattr(deceiver, way)
        return call_until(callers, AfterDeeds(300))


def test_a_server_that_speaks_well_is_not_complained_of():
    ledger = complaints_about("well")
    assert ledger.complaints == []
    assert ledger.num_verified > 0
    assert {deed for _, deed in ledger.done} >= {SPEAK, NONSENSE}


@pytest.mark.parametrize(
    ("way", "complaint"),
    [
        ("with_a_hole", "chunk 3 arrived where chunk 2 was due"),
        ("with_a_chunk_twice", "chunk 1 arrived where chunk 2 was due"),
        ("with_a_hole_that_does_not_show", "5760 samples where there should be 7680"),
        ("out_of_order", "a sample is off by"),
        ("in_another_voice", "a sample is off by"),
    ],
)
def test_what_is_wrong_with_a_stream_fails_the_soak(way, complaint):
    ledger = complaints_about(way)
    assert any(complaint in told for told in ledger.complaints), ledger.complaints
    assert any(soak_of(ledger=ledger).complaints())


def soak_of(**found) -> Soak:
    """One where nothing is wrong but what is given."""
    well = {"ledger": Ledger(), "growth": [NOTHING_GREW], "more_regions": 0, "silence": [0.1, 0.1, 0.1]}
    well["filling"] = {"qwen3_tts_base": Filling.of([(16, 3), (14, 2)])}
    return Soak(minutes=1.0, **{**well, **found})


def looks(grown_bytes: int, descriptors: int = 50) -> list[Look]:
    """Every second for a minute, with the noise of an allocator."""
    noise = np.random.default_rng(1).integers(0, 4 * MIB, 60)
    return [Look(i, 400 * MIB + grown_bytes * i // 60 + int(noise[i]), descriptors, 30) for i in range(60)]


def test_memory_that_rises_fails_the_soak_and_noise_does_not():
    for grown_bytes, leaks in ((0, False), (40 * MIB, True)):
        seen = looks(grown_bytes)
        growth = Growth.of("qwen3_tts_base", seen, before=seen[0], after=seen[0])
        told = list(soak_of(growth=[growth]).complaints())
        assert bool(told) == leaks, told


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"filling": {"qwen3_tts_base": Filling.of([(16, 3), (9, 2)])}}, "slots at only 50% of the looks"),
        ({"more_regions": 1}, "1 shared-memory regions more"),
        (
            {"silence": [0.1, 0.12, 0.2]},
            "listeners waited 0.100 s for each second of audio at first, 0.200 s",
        ),
        ({"growth": [Growth("gateway", 0, 0.0, 0.0, 20, 0)]}, "gateway has 20 descriptors more"),
        ({"growth": [Growth("gateway", 0, 0.0, 0.0, 0, 20)]}, "gateway has 20 threads more"),
    ],
)
def test_what_is_left_behind_fails_the_soak(found, complaint):
    assert list(soak_of().complaints()) == []
    [told] = soak_of(**found).complaints()
    assert complaint in told


def test_silence_is_told_by_thirds_after_the_warm_up():
    silence = [(at_s, 1.0 if at_s < 20 else at_s / 100, 1.0) for at_s in range(100)]
    first, second, third = silence_by_third(silence, 0.0, 100.0)
    assert first < second < third < 1.0


@pytest.mark.triton
def test_of_a_rush_some_are_served_and_the_others_turned_away_with_a_label(server, real_gateway):
    """150 at once: 16 speak, a few wait inside, 64 in Triton's queue at each priority."""

    async def everybody():
        async with Callers.of(f"127.0.0.1:{server.grpc_port}", real_gateway.url, {}, frames=600) as callers:
            return await callers.rush(rate_per_s=150, duration_s=1)

    rush = asyncio.run(everybody())
    metrics_at_rest(server)  # those who were still there have left
    found = Pressure.of(1, [rush], [rush.goodput])
    assert found.callers == 150
    assert found.turned_away > 0
    assert (found.unlabelled, list(found.failures)) == (0, [])
    assert found.goodput.median > 0
