"""Finding voices in a store that says nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from qwen3_tts_engine.errors import EngineFailed, NotFound
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.lookup import RESPITE_S, Lookup

VOICE = VoicePrompt(np.ones(4, np.float32))


class Store:
    """Answers unless it is silent."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked: list[str] = []

    def find(self, name: str) -> VoicePrompt:
        self.asked.append(name)
        assert self.answers.wait(20)
        if name == "nobody":
            raise NotFound("there is no voice named 'nobody'")
        return VOICE


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.answers.set()


def test_what_the_store_says_is_passed_on(store: Store) -> None:
    lookup = Lookup(store.find)
    assert lookup("grandpa") is VOICE
    with pytest.raises(NotFound):
        lookup("nobody")


def test_a_silent_store_is_given_up_on_then_left_alone_then_asked_again(store: Store) -> None:
    now_s = 100.0
    lookup = Lookup(store.find, patience_s=0.05, clock=lambda: now_s)
    store.answers.clear()
    with pytest.raises(EngineFailed, match=r"has not answered for 0\.05 s"):
        lookup("first")
    with pytest.raises(EngineFailed, match="given a rest"):
        lookup("second")
    assert store.asked == ["first"]
    store.answers.set()
    now_s += RESPITE_S
    assert lookup("third") is VOICE


def test_threads_that_hang_in_the_store_are_bounded(store: Store) -> None:
    now_s = 0.0
    lookup = Lookup(store.find, patience_s=0.01, clock=lambda: now_s)
    store.answers.clear()
    before = threading.active_count()
    for _ in range(10):
        now_s += RESPITE_S
        with pytest.raises(EngineFailed):
            lookup("anybody")
    assert threading.active_count() - before <= 4
    store.answers.set()
    now_s += RESPITE_S
    assert lookup("somebody") is VOICE
