"""What the package's build compiles, and what it does where it cannot."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

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
    source = tmp_path / hatch_build.SOURCE
    source.parent.mkdir(parents=True)
    shutil.copy(ROOT / hatch_build.SOURCE, source)

    def initialize() -> tuple[dict[str, Any], list[str]]:
        warnings: list[str] = []
        build_data: dict[str, Any] = {name: list(v) if v == [] else v for name, v in BUILD_DATA.items()}
        app = SimpleNamespace(display_warning=warnings.append)
        hatch_build.CompileLayers(root=str(tmp_path), app=app).initialize("standard", build_data)
        return build_data, warnings

    return initialize


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_wheel_brings_the_library_and_is_for_this_platform(
    build: Callable[[], tuple[dict[str, Any], list[str]]], hatch_build: ModuleType, tmp_path: Path
) -> None:
    if hatch_build.platform.machine() != "x86_64":
        pytest.skip("needs an x86 processor")
    build_data, warnings = build()
    assert not warnings
    assert build_data["artifacts"] == [str(hatch_build.LIBRARY)]
    assert build_data["tag"] == "py3-none-linux_x86_64"
    assert not build_data["pure_python"]
    assert ctypes.CDLL(str(tmp_path / hatch_build.LIBRARY)).runs_here() in (0, 1)


def test_without_a_compiler_the_wheel_is_pure_python_and_says_what_it_lacks(
    build: Callable[[], tuple[dict[str, Any], list[str]]],
    hatch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hatch_build.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build() == (BUILD_DATA, ["no C++ compiler: avx512.cpp is left out"])


def test_for_another_processor_nothing_is_compiled(
    build: Callable[[], tuple[dict[str, Any], list[str]]],
    hatch_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hatch_build.platform, "machine", lambda: "aarch64")
    assert build() == (BUILD_DATA, [])
