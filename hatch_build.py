"""Compiles the decoder layers for processors with AVX-512 on the way into the wheel, where that can be done.

Without a compiler, or for another processor, the wheel is pure Python and PyTorch computes the layers.
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

SOURCE = Path("engine/qwen3_tts_engine/model/avx512.cpp")
LIBRARY = SOURCE.with_name("libavx512.so")
EXTENSIONS = ("f", "bw", "dq", "vl", "vnni", "bf16")
COMPILE = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fno-exceptions",
    "-fno-rtti",
    "-mfma",
    *(f"-mavx512{extension}" for extension in EXTENSIONS),
)


class CompileLayers(BuildHookInterface):  # type: ignore[misc]
    """Puts libavx512.so beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the platform the wheel is then for."""
        source = Path(self.root) / SOURCE
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if not source.exists() or platform.machine() != "x86_64":
            return
        if compiler is None:
            self.app.display_warning(f"no C++ compiler: {SOURCE.name} is left out")
            return
        compile_library(compiler, source, Path(self.root) / LIBRARY)
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"


def compile_library(compiler: str, source: Path, library: Path) -> None:
    """OpenMP stays unresolved: it is to be the one that PyTorch brings into the process."""
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch) / "library.o"
        subprocess.run([compiler, *COMPILE, "-c", str(source), "-o", str(compiled)], check=True)
        fresh = Path(scratch) / library.name
        subprocess.run([compiler, "-shared", str(compiled), "-o", str(fresh)], check=True)
        shutil.copy(fresh, library.with_suffix(".new"))
    library.with_suffix(".new").replace(library)  # who has the old one loaded keeps it
