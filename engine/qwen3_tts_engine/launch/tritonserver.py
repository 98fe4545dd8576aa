"""Finds a tritonserver to run: the machine's own, or else the one inside the nvidia-pytriton wheel.

The wheel has the real server, its Python backend and a stub for each Python version, but not side by side as
the server wants them, and the stub needs a shared libpython. A folder of symbolic links mends both.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"libpython{PYTHON_VERSION}.so.1.0"
STUB = "triton_python_backend_stub"
OLDEST_GLIBC = (2, 35)  # the wheel is manylinux_2_35
IMAGE_BINARIES = Path("/opt/tritonserver/bin")  # where NVIDIA's container images keep it


class LaunchError(Exception):
    """The server cannot be started or has stopped; the message says why and what would help."""


@dataclass(frozen=True)
class Installation:
    """A tritonserver, the flags that show it its own parts, and the folders of its shared libraries."""

    binary: Path
    flags: tuple[str, ...] = ()
    library_path: tuple[Path, ...] = ()


def find_tritonserver(server_dir: Path) -> Installation:
    """Prefer an installed server; `server_dir` is written to only when the wheel's has to be laid out.

    Raises LaunchError naming what is missing: the wheel, a stub for this Python, libpython, a newer glibc.
    """
    return _installed() or _from_wheel(server_dir)


def _installed() -> Installation | None:
    search_path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(IMAGE_BINARIES)])
    binary = shutil.which("tritonserver", path=search_path)
    return Installation(Path(binary)) if binary else None


def _from_wheel(server_dir: Path) -> Installation:
    check_glibc(platform.libc_ver()[1])
    package = wheel_package()
    layout = lay_out(_links(package / "tritonserver"), server_dir.resolve())
    installation = Installation(
        binary=package / "tritonserver/bin/tritonserver",
        flags=(
            f"--backend-directory={layout / 'backends'}",
            f"--cache-directory={package / 'tritonserver/caches'}",
        ),
        # The backend is loaded through a link, where its relative run path leads nowhere.
        library_path=(package.parent / "nvidia_pytriton.libs", layout / "lib"),
    )
    check_libraries(layout / "backends/python" / STUB, installation.library_path)
    return installation


def check_glibc(version: str) -> None:
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GLIBC:
        raise LaunchError(
            f"the tritonserver of the nvidia-pytriton wheel needs glibc {'.'.join(map(str, OLDEST_GLIBC))}"
            f" (Ubuntu 22.04, Debian 12), this machine has {version}; use NVIDIA's tritonserver image"
        )


def wheel_package() -> Path:
    spec = importlib.util.find_spec("pytriton")  # found, not imported: importing it starts threads
    if spec is None or spec.origin is None:
        raise LaunchError(
            f"no tritonserver on PATH or in {IMAGE_BINARIES}, and nvidia-pytriton, the package that carries"
            " one, is not installed; run `make setup`"
        )
    return Path(spec.origin).parent.resolve()


def _links(tritonserver: Path) -> dict[str, Path]:
    """What the layout holds: its relative paths, and the file each of them points to."""
    backend = tritonserver / "backends/python"
    links = {f"backends/python/{file.name}": file for file in sorted(backend.iterdir()) if file.is_file()}
    links[f"backends/python/{STUB}"] = stub_for(PYTHON_VERSION, tritonserver / "python_backend_stubs")
    if libpython := _own_libpython():
        links[f"lib/{LIBPYTHON}"] = libpython
    return links


def stub_for(python_version: str, stubs: Path) -> Path:
    stub = stubs / python_version / STUB
    if not stub.is_file():
        raise LaunchError(
            f"nvidia-pytriton has no Python backend stub for Python {python_version};"
            " use Python 3.10, 3.11 or 3.12"
        )
    return stub


def _own_libpython() -> Path | None:
    """This interpreter's own shared library, which the dynamic loader rarely knows (pyenv, conda, uv).

    Only the one file is linked: a whole conda `lib` on the library path would replace the system's libstdc++.
    """
    folders = (sysconfig.get_config_var("LIBDIR") or "", Path(sys.base_prefix, "lib"))
    candidates = (Path(folder, LIBPYTHON) for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def lay_out(links: Mapping[str, Path], server_dir: Path) -> Path:
    """A folder of these links below `server_dir`: named by its content, complete from its first moment."""
    content = "\n".join(f"{name} -> {target}" for name, target in sorted(links.items()))
    layout = server_dir / f"tritonserver-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    if layout.is_dir():
        return layout
    server_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=server_dir, prefix=".draft-") as scratch:
        draft = Path(scratch, "layout")
        for name, target in links.items():
            link = draft / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
        _publish(draft, layout)
    return layout


def _publish(draft: Path, layout: Path) -> None:
    try:
        draft.rename(layout)
    except OSError:
        if not layout.is_dir():  # else another launch was a moment faster, and made the same
            raise


def check_libraries(program: Path, library_path: tuple[Path, ...]) -> None:
    missing = _missing_libraries(program, library_path)
    if LIBPYTHON in missing:
        raise LaunchError(
            f"{LIBPYTHON} is missing, Triton's Python backend needs it;"
            f" on Debian and Ubuntu: apt-get install libpython{PYTHON_VERSION}"
        )
    if missing:
        raise LaunchError(f"tritonserver lacks shared libraries of this system: {', '.join(missing)}")


def _missing_libraries(program: Path, library_path: tuple[Path, ...]) -> list[str]:
    """Ask the dynamic loader itself, the way ldd does; `program` does not run."""
    environment = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1", "LD_LIBRARY_PATH": joined(library_path)}
    trace = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    return re.findall(r"(\S+) => not found", trace.stdout)


def joined(folders: tuple[Path, ...]) -> str:
    return os.pathsep.join(map(str, folders))


def main() -> int:
    """Print which tritonserver a launch with this server directory would run, or why none can."""
    try:
        print(find_tritonserver(Path(sys.argv[1])).binary)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
