"""A few inputs for each of atheris' targets, always the same, so that `make fuzz` finds them in order."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from fuzz.campaign import GUIDED, guided


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="there is no atheris for this machine"
)
def test_what_atheris_feeds_is_read_or_refused() -> None:
    with ThreadPoolExecutor(2) as pool:  # each begins by instrumenting what it reads with
        failed = [*pool.map(partial(guided, num_runs=1000, seed=1), GUIDED)]
    assert dict(zip(GUIDED, failed, strict=True)) == dict.fromkeys(GUIDED, False)
