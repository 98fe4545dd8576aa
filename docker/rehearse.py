"""Plays the Dockerfile without Docker: every COPY and RUN of a target, in a plain Debian root.

    python3 docker/rehearse.py gateway [--work /tmp/rehearsal] [--bind /a/folder/pip/needs …]

As root, with debootstrap. Debian's Python stands in for that of whatever image a stage starts from: nothing
is learnt about NVIDIA's. An ARG has its default or the variable of its name; pip is set up as it is here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
DEBIAN = "bookworm"
# What all images have that the Dockerfile starts from: Python, its shared library, pip and venv.
PACKAGES = "ca-certificates,libgomp1,libpython3.11,python3,python3-pip,python3-venv"
FOR_THE_NETWORK = ("/etc/resolv.conf", "/etc/ssl/certs", "/usr/local/share/ca-certificates", "/etc/xdg/pip")


@dataclass(frozen=True)
class Instruction:
    """`RUN --mount=type=cache,… command` is a name, flags and the rest."""

    name: str
    flags: Mapping[str, str]
    value: str

    @property
    def pairs(self) -> dict[str, str]:
        """Of ENV and ARG; ours have no spaces in their values."""
        return {name: value for name, _, value in (pair.partition("=") for pair in self.value.split())}


@dataclass(frozen=True)
class Stage:
    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.name == name]


def stages_of(dockerfile: Path) -> dict[str, Stage]:
    """By name, in order; all of ours have one."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction in map(_instruction, filter(str.strip, text.splitlines())):
        if instruction.name == "FROM":
            base, name = instruction.value.split(" AS ")
            stages.append(Stage(name, filled_in(base, arguments)))
        elif stages:
            stages[-1].instructions.append(instruction)
        else:
            arguments.update(instruction.pairs)
    return {stage.name: stage for stage in stages}


def _instruction(line: str) -> Instruction:
    name, rest = line.split(maxsplit=1)
    flags: dict[str, str] = {}
    while rest.startswith("--"):
        flag, rest = rest.split(maxsplit=1)
        flags.update([flag.removeprefix("--").split("=", 1)])
    return Instruction(name, flags, rest)


def filled_in(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], ""), text)


@dataclass
class Room:
    """What a stage has come to: a root, and what the next instruction finds there."""

    root: Path
    folder: Path = Path("/")
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": f"/usr/sbin:{os.defpath}"})

    def inside(self, path: str | Path) -> Path:
        return self.root / str(self.folder / path).lstrip("/")


class Rehearsal:
    """The rooms of one Dockerfile's stages, each played once."""

    def __init__(self, work: Path, binds: list[str]) -> None:
        self._work = work
        self._binds = [path for path in (*FOR_THE_NETWORK, *binds) if Path(path).exists()]
        self._stages = stages_of(CHECKOUT / "docker/Dockerfile")
        self._rooms: dict[str, Room] = {}

    def play(self, name: str) -> Room:
        if name not in self._rooms:
            stage = self._stages[name]
            room = self._rooms[name] = self._like(stage.base, self._work / name)
            for instruction in stage.instructions:
                say(f"{name}: {instruction.name} {instruction.value}")
                self._follow(instruction, room)
        return self._rooms[name]

    def _like(self, base: str, root: Path) -> Room:
        """A copy of another stage's room, or of plain Debian."""
        model = self.play(base) if base in self._stages else Room(self._debian())
        if root.exists():
            shutil.rmtree(root)
        subprocess.run(["cp", "--archive", "--reflink=auto", model.root, root], check=True)
        return Room(root, model.folder, dict(model.environment))

    def _debian(self) -> Path:
        root = self._work / "debian"
        if not root.is_dir():
            command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return root

    def _follow(self, instruction: Instruction, room: Room) -> None:
        if instruction.name == "ARG":
            given = {name: os.environ.get(name, value) for name, value in instruction.pairs.items()}
            room.environment.update(given)
        elif instruction.name == "ENV":
            values = {name: filled_in(value, room.environment) for name, value in instruction.pairs.items()}
            room.environment.update(values)
        elif instruction.name == "WORKDIR":
            room.folder = Path(instruction.value)
            room.inside(".").mkdir(parents=True, exist_ok=True)
        elif instruction.name == "COPY":
            self._copy(instruction, room)
        elif instruction.name == "RUN":
            self._run(instruction, room)

    def _copy(self, instruction: Instruction, room: Room) -> None:
        *sources, target = instruction.value.split()
        origin = self.play(instruction.flags["from"]).root if "from" in instruction.flags else CHECKOUT
        place = room.inside(target)
        place.mkdir(parents=True, exist_ok=True)
        for source in (origin / name.lstrip("/") for name in sources):
            if source.is_dir():
                without = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, dirs_exist_ok=True, ignore=without)
            else:
                shutil.copy2(source, place)

    def _run(self, instruction: Instruction, room: Room) -> None:
        mounts = {Path(path): Path(path) for path in self._binds}
        if mount := instruction.flags.get("mount"):
            cache = self._work / "cache"
            cache.mkdir(exist_ok=True)
            mounts[cache] = Path(dict(part.split("=") for part in mount.split(","))["target"])
        for here, there in mounts.items():
            _make_mount_point(here, room.inside(there))
        script = "".join(f"mount --bind {here} {room.inside(there)}\n" for here, there in mounts.items())
        script += f"mount -t proc proc {room.inside('/proc')}\nmount --bind /dev {room.inside('/dev')}\n"
        script += f'exec chroot {room.root} env --chdir={room.folder} sh -c "$1"'
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        # The mounts are in a namespace of their own, and gone with it.
        subprocess.run(
            ["unshare", "--mount", "sh", "-eu", "-c", script, "sh", instruction.value],
            env={**pip, "PIP_BREAK_SYSTEM_PACKAGES": "1", "HOME": "/root", **room.environment},
            check=True,
        )


def _make_mount_point(here: Path, place: Path) -> None:
    if here.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Play a target of the Dockerfile in a plain Debian root.")
    parser.add_argument("target")
    parser.add_argument("--work", type=Path, default=Path("/tmp/rehearsal"), help="where the roots go")
    parser.add_argument("--bind", action="append", default=[], help="a folder of this machine that pip needs")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    say(f"done: {Rehearsal(arguments.work, arguments.bind).play(arguments.target).root}")


if __name__ == "__main__":
    main()
