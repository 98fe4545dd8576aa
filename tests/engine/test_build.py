"""What the package's build compiles, and what it does where it cannot."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwen3_tts_engine.model.native.library import LIBRARIES
from real_server import ROOT

BUILD_DATA = {"artifacts": [], "pure_python": True}


@pytest.fixture
def hatch_build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build hook, without hatchling, which only a build's own environment has."""
    interface = ModuleType("interface")
    interface.BuildHookInterface = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(hatch_build: ModuleType, tmp_path: Path) -> Callable[[], tuple[dict[str, Any], list[str]]]:
    """Build in a copy of what is compiled: what the wheel is to be, and what the user is warned of."""
    (tmp_path / hatch_build.SOURCES).mkdir(parents=True)
    for source in (ROOT / hatch_build.SOURCES).glob("*.[ch]*"):
        shutil.copy(source, tmp_path / hatch_build.SOURCES)

    def initialize() -> tuple[dict[str, Any], list[str]]:
        warnings: list[str] = []
        build_data: dict[str, Any] = {name: list(v) if v == [] else v for name, v in BUILD_DATA.items()}
        app = SimpleNamespace(display_warning=warnings.append)
        hatch_build.CompileNative(root=str(tmp_path), app=app).initialize("standard", build_data)
        return build_data, warnings

    return initialize


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_wheel_brings_the_libraries_and_is_for_this_platform(
    build: Callable[[], tuple[dict[str, Any], list[str]]], hatch_build: ModuleType, tmp_path: Path
) -> None:
    if hatch_build.platform.machine() != "x86_64":
        pytest.skip("needs an x86 processor")
    build_data, warnings = build()
    assert not warnings
    libraries = [hatch_build.SOURCES / name for name in LIBRARIES]
    assert build_data["artifacts"] == [str(path) for path in libraries]
    assert build_data["tag"] == "py3-none-linux_x86_64"
    assert not build_data["pure_python"]
    assert all((tmp_path / path).is_file() for path in libraries)


def test_without_a_compiler_the_wheel_is_pure_python_and_says_what_it_lacks(
    build: Callable[[], tuple[dict[str, Any], list[str]]],
    hatch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hatch_build.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build() == (BUILD_DATA, [f"no C++ compiler: the libraries of {hatch_build.MAIN} are left out"])


def test_a_compiler_that_fails_leaves_the_wheel_pure_python(
    build: Callable[[], tuple[dict[str, Any], list[str]]],
    hatch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hatch_build.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CXX", "false")
    build_data, warnings = build()
    assert build_data == BUILD_DATA
    assert [warning.split()[0] for warning in warnings] == [*LIBRARIES]


def test_for_another_processor_nothing_is_compiled(
    build: Callable[[], tuple[dict[str, Any], list[str]]],
    hatch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hatch_build.platform, "machine", lambda: "aarch64")
    assert build() == (BUILD_DATA, [])
