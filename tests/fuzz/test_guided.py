"""A few inputs for each of atheris' targets, so that `make fuzz` finds them in order."""

from __future__ import annotations

import importlib.util

import pytest

from fuzz.campaign import GUIDED, guided

NUM_RUNS = 2000


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="there is no atheris for this machine"
)
@pytest.mark.parametrize("target", GUIDED)
def test_what_atheris_feeds_is_read_or_refused(target: str) -> None:
    assert not guided(target, NUM_RUNS)
