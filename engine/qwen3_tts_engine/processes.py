"""The processes of a tritonserver's models, as the kernel lists them: one for each instance."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

PROC = Path("/proc")
MODEL_PY = re.compile(r"/([^/\0]+)/\d+/model\.py\0")  # the Python backend's stub is started with this path
DEAD = ("Z", "X")  # a process that was killed stays listed until its parent asks for it; Triton never does


def model_processes(group: int) -> dict[str, list[int]]:
    """The living processes of each model in a server's process group, by its name."""
    processes: dict[str, list[int]] = defaultdict(list)
    for pid in _members(group):
        with suppress(OSError):
            if model := MODEL_PY.search((PROC / str(pid) / "cmdline").read_text(errors="replace")):
                processes[model[1]].append(pid)
    return dict(processes)


def _members(group: int) -> Iterator[int]:
    for directory in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended just now
            # pid (name) state parent group …; a name may hold anything, parentheses too: proc(5)
            state, _, its_group = (
                (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()[:3]
            )
            if int(its_group) == group and state not in DEAD:
                yield int(directory.name)


def num_instances(config: Mapping[str, Any]) -> int:
    """How many processes the configuration that Triton has settled on asks for."""
    if config.get("backend") != "python":
        return 0
    groups = config.get("instance_group", [])
    return sum(group.get("count", 1) * max(1, len(group.get("gpus", []))) for group in groups)
