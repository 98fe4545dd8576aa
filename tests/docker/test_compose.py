"""The composition: who may reach whom, what each is given, how it ends."""

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs, page_of
from qwen3_tts_engine.launch.server import KILL_MARGIN_S
from qwen3_tts_gateway.serving import DRAIN_S
from real_server import ROOT

DOCKER = ROOT / "docker"
OURS = ("triton", "gateway")
SERVICES = ("triton", "gateway", "redis", "prometheus", "grafana")
FILES = {"compose.yaml": ["compose.yaml"], "compose.dev.yaml": ["compose.yaml", "compose.dev.yaml"]}
VERSION = version("qwen3-tts-inference-server")

Document = dict[str, Any]


def seconds(duration: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_all_are_there(compose: Document) -> None:
    assert {*compose["services"]} == {*SERVICES}


@pytest.mark.parametrize("file", FILES)
def test_compose_understands_it(checkout: Path, file: str) -> None:
    client = shutil.which("docker")
    if client is None or subprocess.run([client, "compose", "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose on this machine")
    flags = [flag for name in FILES[file] for flag in ("-f", str(checkout / name))]
    command = [client, "compose", *flags, "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    is_dev = file == "compose.dev.yaml"
    assert ("deploy" in services["triton"]) is not is_dev
    for name in OURS:
        assert services[name]["build"]["target"] == ("dev" if is_dev else name)
        assert services[name]["healthcheck"]
        assert [secret["source"] for secret in services[name]["secrets"]][-1] == "triton_api_key"


@pytest.mark.parametrize("name", SERVICES)
def test_everyone_is_locked_up(compose: Document, name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & {*service}


@pytest.mark.parametrize("name", SERVICES)
def test_everyone_is_asked_how_it_is(compose: Document, name: str) -> None:
    test = compose["services"][name]["healthcheck"]["test"]
    assert test[0] == "CMD"  # no shell
    assert "curl" not in test


def test_triton_is_healthy_when_its_supervisor_says_so_too(compose: Document) -> None:
    *python, script = compose["services"]["triton"]["healthcheck"]["test"][1:]
    triton, supervisor = free_ports(2)
    for page, here in (("8000/v2/health/ready", f"{triton}/health"), ("8003/", f"{supervisor}/")):
        assert page in script
        script = script.replace(page, here)

    def is_healthy() -> bool:
        return subprocess.run([*python, script], capture_output=True, timeout=20).returncode == 0

    repairs = Repairs()
    with page_of(repairs, "127.0.0.1", supervisor):
        assert not is_healthy()  # without Triton
        with page_of(Repairs(), "127.0.0.1", triton):
            assert is_healthy()
            repairs.begin("qwen3_tts_base", "silent")
            assert not is_healthy()


@pytest.mark.parametrize("name", SERVICES)
def test_no_log_fills_the_disk(compose: Document, name: str) -> None:
    logging = compose["services"][name]["logging"]
    assert logging["driver"] == "json-file"
    assert {"max-size", "max-file"} == {*logging["options"]}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_release(compose: Document, name: str) -> None:
    assert re.search(r":v?\d+\.\d+", compose["services"][name]["image"])


def test_our_images_have_the_release_of_the_package(compose: Document, compose_dev: Document) -> None:
    images = [compose["services"][name]["image"] for name in OURS]
    images += [service["image"] for service in compose_dev["services"].values()]
    assert {*images} == {f"qwen3-tts-{image}:{VERSION}" for image in ("triton", "gateway", "dev")}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_in_the_example_file(
    compose: Document, compose_dev: Document, example_variables: set[str], name: str
) -> None:
    for file in (compose, compose_dev):
        assert {*file["services"][name].get("environment", {})} <= example_variables


def test_nobody_reaches_triton_but_through_the_gateway(compose: Document) -> None:
    assert "ports" not in compose["services"]["triton"]
    assert "ports" not in compose["services"]["redis"]


def test_what_is_published_is_published_to_this_machine_alone(compose: Document) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_redis_sees_the_gateway_and_nobody_else(compose: Document) -> None:
    assert compose["networks"]["limits"] == {"internal": True}
    assert [name for name in SERVICES if "limits" in compose["services"][name]["networks"]] == [
        "gateway",
        "redis",
    ]


def test_triton_has_the_gpus_and_the_memory_that_it_shares(compose: Document) -> None:
    triton = compose["services"]["triton"]
    [device] = triton["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert triton["shm_size"] == "1gb"
    assert triton["ulimits"] == {"memlock": -1, "stack": {"soft": 64 << 20, "hard": -1}}


def test_weights_and_voices_outlive_the_container(compose: Document) -> None:
    triton = compose["services"]["triton"]
    places = dict(volume.split(":") for volume in triton["volumes"])
    assert {*places} <= {*compose["volumes"]}
    assert places["voices"] == triton["environment"]["VOICE_STORE"]
    assert f"HF_HOME={places['weights']}" in (DOCKER / "Dockerfile").read_text()


def test_the_longest_utterance_is_spoken_to_its_end(compose: Document) -> None:
    longest_s = max(LaunchConfig().exit_timeout_s + KILL_MARGIN_S, DRAIN_S)
    for name in OURS:
        assert seconds(compose["services"][name]["stop_grace_period"]) > longest_s


def test_the_first_start_has_the_time_that_the_launcher_gives_it(compose: Document) -> None:
    start_s = seconds(compose["services"]["triton"]["healthcheck"]["start_period"])
    assert start_s >= LaunchConfig().ready_timeout_s


def test_what_is_mounted_from_the_checkout_is_there(compose: Document) -> None:
    mounts = [
        volume.split(":")
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith(".")
    ]
    assert mounts
    for source, _, mode in mounts:
        assert (DOCKER / source).exists(), source
        assert mode == "ro"


def test_no_secret_is_in_an_environment(compose: Document) -> None:
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            assert not re.search("KEY|PASSWORD(?!__FILE)|TOKEN|LIMITS_STORE", name), name
        assert {*service.get("secrets", ())} <= {*compose["secrets"]}
    assert all(secret["file"].startswith("secrets/") for secret in compose["secrets"].values())
