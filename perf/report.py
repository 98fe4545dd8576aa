"""What every benchmark report says of where its figures come from, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import textwrap
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
PACKAGES = ("torch", "qwen-tts", "transformers", "numpy", "tritonclient", "nvidia-pytriton")
QUIET = 0.05  # of all cores, for others
LINE_WIDTH = 118
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "MKL_NUM_THREADS", "LD_PRELOAD")


@dataclass(frozen=True)
class Spread:
    """The same figure measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"{_figure(self.median)} ({_figure(self.low)}–{_figure(self.high)})"


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    memory_gib: float
    gpu: str | None
    system: str

    @classmethod
    def this(cls) -> Machine:
        return cls(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            system=f"{platform.system()} {platform.machine()}",
        )


@dataclass(frozen=True)
class Provenance:
    """Enough to measure again."""

    finished_at: str
    command: str
    commit: str
    machine: Machine
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    used_by_others: float

    @classmethod
    def of(cls, meter: MachineMeter) -> Provenance:
        return cls(
            finished_at=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            command=_command_line(),
            commit=_commit(),
            machine=Machine.this(),
            versions={"python": platform.python_version(), **_installed(PACKAGES)},
            environment={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
            used_by_others=meter.used_by_others(),
        )

    def lines(self) -> list[str]:
        machine = self.machine
        parts = [
            machine.cpu,
            f"{machine.cores} cores",
            f"{machine.memory_gib} GiB",
            machine.gpu,
            machine.system,
        ]
        return [
            f"* Machine: {', '.join(filter(None, parts))}",
            f"* Used by others meanwhile: {self.used_by_others:.0%} of all cores{self._noise_warning()}",
            f"* Versions: {_pairs(self.versions)}",
            f"* Thread settings in the environment: {_pairs(self.environment) or 'none'}",
            f"* Commit: {self.commit}",
            f"* Command: `{self.command}`, finished {self.finished_at}",
        ]

    def _noise_warning(self) -> str:
        return "; **not a quiet machine: measure again**" if self.used_by_others > QUIET else ""


class MachineMeter:
    """How much of the machine anybody but this process and its children used since it was made."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._theirs_before_s = _busy_s() - _own_s()

    def used_by_others(self) -> float:
        theirs_s = _busy_s() - _own_s() - self._theirs_before_s
        available_s = (time.monotonic() - self._started_s) * (os.cpu_count() or 1)
        return max(0.0, theirs_s / available_s)


@dataclass(frozen=True)
class Report:
    """A finished report.

    Args:
        title: what was measured.
        name: of its files, without the date.
        method: how it was measured, in words.
        sections: Markdown, one string each.
        figures: the same figures for programs; dataclasses turned into plain values.
        plots: the same figures for the eye: SVG by title.
    """

    title: str
    name: str
    method: str
    sections: Sequence[str]
    figures: Mapping[str, object]
    provenance: Provenance
    plots: Mapping[str, str] = field(default_factory=dict)

    def write(self, directory: Path = RESULTS) -> list[Path]:
        directory.mkdir(parents=True, exist_ok=True)
        contents = {
            f"{self._stem}.json": self._json(),
            f"{self._stem}.md": self.markdown(),
            **{self._plot_file(title): svg for title, svg in self.plots.items()},
        }
        for name, content in contents.items():
            (directory / name).write_text(content, encoding="utf-8")
        return [directory / name for name in contents]

    def publish(self, directory: Path) -> None:
        """Show it and write it."""
        print(self.markdown())
        for path in self.write(directory):
            progress(f"wrote {path}")

    def markdown(self) -> str:
        method = textwrap.fill(self.method.strip(), LINE_WIDTH)
        origin = "\n".join(self.provenance.lines())
        plots = [f"![{title}]({self._plot_file(title)})" for title in self.plots]
        parts = [f"# {self.title}", *self.sections, *plots, f"## Method\n\n{method}", origin]
        return "\n\n".join(parts) + "\n"

    @property
    def _stem(self) -> str:
        return f"{time.strftime('%Y-%m-%d')}-{self.name}"

    def _plot_file(self, title: str) -> str:
        return f"{self._stem}-{'-'.join(title.lower().replace(',', '').split())}.svg"

    def _json(self) -> str:
        document = {
            "title": self.title,
            "method": " ".join(self.method.split()),
            **self.figures,
            "provenance": asdict(self.provenance),
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["--"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def device_kind() -> str:
    """Of the machine: the first word of a report's name."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def add_results_option(parser: ArgumentParser) -> None:
    """Where the report goes; one's own experiments need not lie among those that are quoted."""
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory (default: perf/results)")


def at_least(least: int) -> Callable[[str], int]:
    """What reads an option that is a whole number from `least` on."""

    def read(text: str) -> int:
        if int(text) < least:
            raise ArgumentTypeError(f"{text} is too few; at least {least}")
        return int(text)

    return read


def _figure(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _command_line() -> str:
    script = Path(sys.argv[0]).resolve().relative_to(ROOT)
    return shlex.join(["python", str(script), *sys.argv[1:]])


def _commit() -> str:
    commit = _git("rev-parse", "--verify", "HEAD")
    if not commit:
        return "none"
    # Reports are written between two runs and change nothing that runs.
    changes = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return f"{commit}+dirty" if changes else commit


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _busy_s() -> float:
    """CPU seconds of the whole machine that were not idle, those a hypervisor took away included."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def _own_s() -> float:
    """CPU seconds of this process and its children, those that ended included."""
    this = psutil.Process()
    spent = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    ended = this.cpu_times()
    return sum(t.user + t.system for t in spent) + ended.children_user + ended.children_system
