"""The images: what they start from, what they install, who they run as."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from real_server import ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"
OURS = ("triton", "gateway", "dev")
# Variables of the programs inside, not of ours.
NOT_OURS = {"HF_HOME", "HF_HUB_DISABLE_TELEMETRY", "HOME", "PATH", "PYTHONDONTWRITEBYTECODE"}


@pytest.fixture(scope="module")
def stages(script: Callable[[str], ModuleType]) -> dict[str, Any]:
    return dict(script("rehearse").stages_of(DOCKERFILE))


def tool(name: str) -> str:
    """A program of the virtual environment, or of the machine."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=path) or pytest.skip(f"there is no {name} here")


def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_there_is_a_stage_for_each_image(stages: dict[str, Any]) -> None:
    assert {*OURS} <= {*stages}


def test_what_is_not_ours_has_a_release(stages: dict[str, Any]) -> None:
    bases = {stage.base for stage in stages.values()} - {*stages}
    assert all(re.search(r":\d+\.\d+-", base) for base in bases), bases


def test_triton_is_new_enough(stages: dict[str, Any]) -> None:
    """26.04 is the first that notices when the process of a model dies."""
    release = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", stages["triton"].base)
    assert release
    assert (int(release[1]), int(release[2])) >= (26, 4)


@pytest.mark.parametrize("image", OURS)
def test_nobody_is_root(stages: dict[str, Any], image: str) -> None:
    last = [instruction for instruction in stages[image].instructions if instruction.name in ("USER", "RUN")][
        -1
    ]
    assert (last.name, last.value) == ("USER", "1000:1000")


def test_the_gateway_has_no_shell(stages: dict[str, Any]) -> None:
    """Triton's image needs one: NVIDIA's entry point is a script."""
    last = stages["gateway"].all("RUN")[-1].value
    assert last.split() == ["rm", "/bin/sh", "/bin/bash", "/bin/dash"]
    [command] = stages["gateway"].all("CMD")
    assert command.value.startswith('["python3", ')


def test_every_package_of_others_is_the_release_that_the_tests_run_with(stages: dict[str, Any]) -> None:
    installs = [
        command
        for stage in stages.values()
        for run in stage.all("RUN")
        for command in run.value.split("&&")
        if re.search(r"pip .*\b(install|wheel) ", command)
    ]
    assert len(installs) == 6
    for command in installs:
        assert "--constraint" in command or "--no-deps" in command, command


def test_the_builder_gets_what_is_copied_and_nothing_else(stages: dict[str, Any]) -> None:
    copied = {
        source.rstrip("/")
        for stage in stages.values()
        for copy in stage.all("COPY")
        if "from" not in copy.flags
        for source in copy.value.split()[:-1]
    }
    ignored, *lines = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_every_variable_is_in_the_example_file(stages: dict[str, Any], example_variables: set[str]) -> None:
    for image in OURS:
        for instruction in stages[image].all("ENV"):
            assert {*instruction.pairs} - NOT_OURS <= example_variables


def test_the_models_it_speaks_with_are_those_of_the_example_file(stages: dict[str, Any]) -> None:
    example = (ROOT / ".env.example").read_text()
    models = {
        name: value
        for instruction in stages["triton"].all("ENV")
        for name, value in instruction.pairs.items()
        if name.startswith("QWEN_TTS_")
    }
    assert len(models) == 3
    for name, value in models.items():
        assert f"{name}={value}\n" in example
