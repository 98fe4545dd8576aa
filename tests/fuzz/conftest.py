"""What all of it may cost, and how many inputs there were."""

import resource
from collections.abc import Iterator

import pytest

from fuzzing import num_inputs

MOST_GROWTH_BYTES = 1 << 30


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    before = _peak_bytes()
    yield
    assert _peak_bytes() - before < MOST_GROWTH_BYTES, "the inputs have filled the memory"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for test, number in num_inputs.items():
        terminalreporter.write_line(f"fuzzed {number:>7} {test}")
