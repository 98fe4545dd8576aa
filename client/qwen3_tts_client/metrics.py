"""Pages of Prometheus metrics, read twice: what stands on them, and what grew in between."""

from __future__ import annotations

import http.client
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

_TIMEOUT_S = 5.0
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A name, and its labels sorted."""

Page = Mapping[Series, float]


def page_in(text: str, instance: str) -> Page:
    """A page in Prometheus' text format, each series with the label `instance`, as Prometheus adds it."""
    return {
        (name, tuple(sorted([*_LABEL.findall(labels), ("instance", instance)]))): float(value)
        for name, labels, value in _SAMPLE.findall(text)
    }


@dataclass(frozen=True)
class Watch:
    """What metrics said at the beginning and at the end of some seconds.

    Attributes:
        silent: URLs where no page of metrics was at the end.
        answers: whether any Triton does, be it by its metrics or by speaking.
    """

    before: Page
    after: Page
    silent: Sequence[str] = ()
    answers: bool = True

    def now(self, name: str, *by: str, **labels: str) -> dict[str, float]:
        """Sums at the end over the series of a name whose labels match these regular expressions.

        Args:
            by: labels that are kept apart; their values, joined by ", ", are the keys.
        """
        return self._sums(name, by, labels, lambda series: self.after[series])

    def growth(self, name: str, *by: str, **labels: str) -> dict[str, float]:
        """As `now`, of what counters gained; one that fell has begun anew."""

        def gained(series: Series) -> float:
            before, after = self.before.get(series, 0.0), self.after[series]
            return after - before if after >= before else after

        return self._sums(name, by, labels, gained)

    def quantile(self, share: float, histogram: str, by: str) -> dict[str, float]:
        """Of what a histogram observed in between, interpolated within a bucket as Prometheus does it."""
        buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for key, count in self.growth(f"{histogram}_bucket", by, "le").items():
            who, bound = key.rsplit(", ", 1)
            buckets[who].append((float(bound), count))
        observed = {who: sorted(its) for who, its in buckets.items() if max(count for _, count in its) > 0}
        return {who: _quantile(share, its) for who, its in observed.items()}

    def _sums(
        self, name: str, by: Sequence[str], labels: Mapping[str, str], value: Callable[[Series], float]
    ) -> dict[str, float]:
        sums: dict[str, float] = defaultdict(float)
        for series, own in self._matching(name, labels):
            sums[", ".join(own.get(label, "") for label in by)] += value(series)
        return dict(sums)

    def _matching(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[Series, dict[str, str]]]:
        for series in self.after:
            own = dict(series[1])
            if series[0] == name and all(re.fullmatch(it, own.get(key, "")) for key, it in labels.items()):
                yield series, own


@dataclass
class Watcher:
    """Reads pages now, and when it is asked what became of them.

    Args:
        urls: of the pages; those that do not answer are left out.
        seconds: what lies between the two readings at least, where there is a page at all.
    """

    urls: Sequence[str]
    seconds: float

    def __post_init__(self) -> None:
        self._began_s = time.monotonic()
        self._before = self._read()

    def look(self, *, answers: bool) -> Watch:
        """What grew since this was made; `answers` as in `Watch`."""
        if self._before:
            time.sleep(max(0.0, self._began_s + self.seconds - time.monotonic()))
        after = self._read()
        return Watch(
            _together(self._before),
            _together(after),
            silent=[url for url in self.urls if url not in after],
            answers=answers or any(name.startswith("nv_") for name, _ in _together(after)),
        )

    def _read(self) -> dict[str, Page]:
        pages = {}
        for url in self.urls:
            with suppress(OSError, ValueError, http.client.HTTPException):  # nobody there, or no metrics
                pages[url] = page_in(_fetched(url), urlsplit(url).netloc)
        return {url: page for url, page in pages.items() if page}


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        return str(answer.read().decode())


def _together(pages: Mapping[str, Page]) -> Page:
    return {series: value for page in pages.values() for series, value in page.items()}


def _quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Of sorted pairs of an upper bound and how many are at most that; the last bound is infinite."""
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets[:-1]:
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower
