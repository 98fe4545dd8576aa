"""What this machine lets a process have: cores, and stack."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def num_available_cores(cgroup_quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may use: its affinity mask, and in a container also the CPU quota."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # no cgroup v2, or the quota is "max"
        quota, period = map(int, cgroup_quota.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)


@contextmanager
def stack_limit(wanted_bytes: int) -> Iterator[None]:
    """Processes started in the block get this stack, as far as the hard limit lets them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    # "unlimited" means 2 MiB for threads, so it is not more than what is wanted here.
    if soft == resource.RLIM_INFINITY or soft < wanted_bytes:
        bounded = wanted_bytes if hard == resource.RLIM_INFINITY else min(wanted_bytes, hard)
        resource.setrlimit(resource.RLIMIT_STACK, (bounded, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
