"""Finding a tritonserver, and laying out the wheel's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen3_tts_engine.launch import tritonserver
from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.launch.triton_http import num_busy
from qwen3_tts_engine.launch.tritonserver import (
    LaunchError,
    check_glibc,
    check_libraries,
    find_tritonserver,
    lay_out,
    stub_for,
)


def test_an_installed_tritonserver_is_used_with_its_own_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tritonserver(tmp_path / "unused") == tritonserver.Installation(binary)
    assert not (tmp_path / "unused").exists()


def test_launches_at_once_share_one_complete_layout(tmp_path: Path) -> None:
    links = {f"backends/python/{name}": Path("/wheel", name) for name in ("backend.so", "stub")}
    with ThreadPoolExecutor(8) as pool:
        layouts = set(pool.map(lambda _: lay_out(links, tmp_path), range(32)))
    [layout] = tmp_path.iterdir()
    assert layouts == {layout}
    assert {name: (layout / name).readlink() for name in links} == links


def test_another_wheel_gets_another_layout(tmp_path: Path) -> None:
    assert lay_out({"stub": Path("/old")}, tmp_path) != lay_out({"stub": Path("/new")}, tmp_path)


def test_a_python_without_a_stub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no Python backend stub for Python 3\.99; use Python 3\.10"):
        stub_for("3.99", tmp_path)


def test_a_missing_libpython_names_the_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # The wheel's oldest stub wants a libpython that no supported system has.
    monkeypatch.setattr(tritonserver, "PYTHON_VERSION", "3.8")
    monkeypatch.setattr(tritonserver, "LIBPYTHON", "libpython3.8.so.1.0")
    package = tritonserver.wheel_package()
    stub = stub_for("3.8", package / "tritonserver/python_backend_stubs")
    with pytest.raises(LaunchError, match=r"apt-get install libpython3\.8"):
        check_libraries(stub, (package.parent / "nvidia_pytriton.libs",))


def test_an_old_glibc_is_refused_by_version() -> None:
    check_glibc("2.35")
    check_glibc("")
    with pytest.raises(LaunchError, match=r"needs glibc 2\.35 .* this machine has 2\.31"):
        check_glibc("2.31")


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)]
)
def test_a_container_counts_the_cores_of_its_quota(quota: str, cores: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    without_quota = num_available_cores(tmp_path / "absent")
    assert num_available_cores(tmp_path / "cpu.max") == (cores or without_quota)


def test_busy_is_what_the_talkers_speak_and_hold() -> None:
    page = """
        # HELP qwen3_tts_active_slots Slots in use
        qwen3_tts_active_slots{model="qwen3_tts_base",version="1"} 2.000000
        qwen3_tts_active_slots{model="qwen3_tts_custom_voice",version="1"} 1.000000
        qwen3_tts_waiting_requests{model="qwen3_tts_base",version="1"} 4.000000
        qwen3_tts_slots{model="qwen3_tts_base",version="1"} 8.000000
        """.replace("        ", "")
    assert num_busy(page) == 7
    assert num_busy("nv_inference_count 3") is None
