"""Tests on inputs that nobody means well with: few and always the same in CI, new and many in `make fuzz`.

FUZZ_TIMES multiplies the number of inputs, and takes them from where no run has been before.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

TIMES = int(os.environ.get("FUZZ_TIMES", "0"))
SLOWEST_S = 20.0  # that one input may take, whatever else this machine does
MOST_CHARACTERS = 200

num_inputs: Counter[str] = Counter()
"""What each test was tried with in this process."""

Test = TypeVar("Test", bound=Callable[..., Any])


def fuzz(num_examples: int, **inputs: SearchStrategy[Any]) -> Callable[[Test], Any]:
    """Try a test with so many inputs; each must be done with within `SLOWEST_S`."""
    configured = settings(
        max_examples=num_examples * max(1, TIMES),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test: Test) -> Any:
        @functools.wraps(test)
        def one_more(*args: Any, **kwargs: Any) -> None:
            num_inputs[test.__name__] += 1
            begin_s = time.monotonic()
            test(*args, **kwargs)
            assert time.monotonic() - begin_s < SLOWEST_S, "it took too long"

        return pytest.mark.timeout(300 * max(1, TIMES))(configured(given(**inputs)(one_more)))

    return decorate


# --- Inputs -----------------------------------------------------------------------------------------------

inner_keys = st.sampled_from(["id", "type", "name", "voice", "text", "", "__class__"])
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=MOST_CHARACTERS)
    | st.sampled_from(["", " ", "\0", "\ud800", "é", "../x", "a" * 70_000, 2**63, -(2**63) - 1, 1e400, -0.0]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20) | inner_keys, inner, max_size=4)
    ),
    max_leaves=8,
)
"""Of what JSON can say, and Python's reading of it."""


@st.composite
def mutated(draw: st.DrawFn, originals: SearchStrategy[bytes]) -> bytes:
    """A file that met with an accident: overwritten, cut, grown and glued in up to six places."""
    file = draw(originals)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(file), 400)) | st.integers(0, len(file)))
        piece = draw(st.binary(max_size=16) | st.sampled_from(EXTREMES))
        edit = draw(st.sampled_from(("overwrite", "insert", "remove", "cut", "repeat")))
        if edit == "overwrite":
            file = file[:at] + piece + file[at + len(piece) :]
        elif edit == "insert":
            file = file[:at] + piece + file[at:]
        elif edit == "remove":
            file = file[:at] + file[at + draw(st.integers(1, 2000)) :]
        elif edit == "repeat":
            file = (
                file[:at]
                + file[max(0, at - draw(st.integers(1, 64))) : at] * draw(st.integers(1, 50))
                + file[at:]
            )
        else:
            file = file[:at]
    return file


EXTREMES = [
    *(bytes(size) for size in (1, 2, 4, 8)),
    *(b"\xff" * size for size in (1, 2, 4, 8)),
    *(b"\x7f" + b"\xff" * (size - 1) for size in (2, 4, 8)),
    *(b"\xff" * (size - 1) + b"\x7f" for size in (2, 4, 8)),
    b"\x80",
    b"[" * 5000,
    b'{"a":' * 5000,
]
