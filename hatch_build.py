"""Compiles the native library for x86 processors on the way into the wheel, where that can be done.

Without a compiler, or for another processor, the wheel is pure Python and PyTorch computes everything.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("engine/qwen3_tts_engine/model/native")
MAIN = SOURCES / "library.cpp"
COMPILE = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wno-ignored-attributes",
)
# What each is compiled for; `library.py` chooses between them. The first needs an AMD Zen 4 or an Intel
# Sapphire Rapids, the second any x86 processor of the last ten years.
LIBRARIES = {
    "libnative_avx512.so": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
    "libnative_avx2.so": ("-march=x86-64-v3",),
}


class CompileNative(BuildHookInterface):  # type: ignore[misc]
    """Puts the libraries beside their source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the platform the wheel is then for."""
        source = Path(self.root) / MAIN
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if not source.exists() or platform.machine() != "x86_64":
            return
        if compiler is None:
            self.app.display_warning(f"no C++ compiler: the libraries of {MAIN} are left out")
            return
        for name, target in LIBRARIES.items():
            try:
                compile_library(compiler, source, target, Path(self.root) / SOURCES / name)
            except subprocess.CalledProcessError as error:  # an old compiler, say
                self.app.display_warning(f"{name} is left out: {error}")
                continue
            build_data["artifacts"].append(str(SOURCES / name))
        if not build_data["artifacts"]:
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"


def compile_library(compiler: str, source: Path, target: tuple[str, ...], library: Path) -> None:
    """OpenMP stays unresolved: it is to be the one that PyTorch brings into the process."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "library.o"
        subprocess.run([compiler, *COMPILE, *target, "-c", str(source), "-o", str(compiled)], check=True)
        fresh = Path(scratch) / library.name
        subprocess.run([compiler, "-shared", str(compiled), "-o", str(fresh)], check=True)
        shutil.copy(fresh, library.with_suffix(".new"))
    library.with_suffix(".new").replace(library)  # who has the old one loaded keeps it
