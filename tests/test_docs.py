"""The documentation says what is so, and its samples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from qwen3_tts_engine.config import VARIABLES, BaseConfig
from qwen3_tts_engine.launcher import Server
from qwen3_tts_engine.metrics import FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
CUSTOM_VOICE = ROOT / "model_repository" / "qwen3_tts_custom_voice" / "config.pbtxt"

# Samples that set up a machine or run a whole server; other tests, or the README's own test command, do that.
NOT_RUN_HERE = re.compile(r"\b(make|pip install|docker run) ")


def model_config() -> model_config_pb2.ModelConfig:
    return text_format.Parse(CUSTOM_VOICE.read_text(), model_config_pb2.ModelConfig())


def section(title: str) -> str:
    """What stands below a heading of protocol.md, down to the next one like it."""
    return PROTOCOL.split(f"\n## {title}\n")[1].split("\n## ")[0]


def documented(cell: str, title: str) -> str:
    """The row of a section's table whose first cell is this."""
    rows = re.findall(rf"^\| `{cell}` \|.*$", section(title), flags=re.MULTILINE)
    assert len(rows) == 1, f"{cell} has {len(rows)} rows in docs/protocol.md"
    return str(rows[0])


def samples(page: str, language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    return [block for block in blocks if not NOT_RUN_HERE.search(block)]


def on(server: Server, sample: str) -> str:
    """A sample says the usual ports; the test's server has its own."""
    return sample.replace("localhost:8000", f"localhost:{server.http_port}").replace(
        "localhost:8001", f"localhost:{server.grpc_port}"
    )


@pytest.mark.parametrize("tensor", [*model_config().input, *model_config().output], ids=lambda t: t.name)
def test_every_tensor_is_documented_with_its_type(tensor: model_config_pb2.ModelInput) -> None:
    type_name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    assert f"| {type_name}" in documented(tensor.name, "`qwen3_tts_custom_voice`")


@pytest.mark.parametrize("parameter", sorted(model_config().parameters))
def test_every_parameter_is_documented(parameter: str) -> None:
    row = documented(parameter, "Model parameters")
    for variable in (v for v, overridden in VARIABLES.items() if overridden == parameter):
        assert f"`{variable}`" in row


def test_no_parameter_is_documented_that_is_not_there() -> None:
    documented_parameters = re.findall(r"^\| `(\w+)` \|", section("Model parameters"), flags=re.MULTILINE)
    assert set(documented_parameters) == set(BaseConfig.__dataclass_fields__)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_metric_is_documented(family: object) -> None:
    name = family.name  # type: ignore[attr-defined]
    assert name in README
    assert name in PROTOCOL


def test_every_environment_variable_is_in_the_example_file() -> None:
    example = (ROOT / ".env.example").read_text()
    variables = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", section("Model parameters")))
    assert variables >= set(VARIABLES)
    for variable in variables:
        assert re.search(rf"^#? ?{variable}=", example, flags=re.MULTILINE), variable


def test_every_figure_in_the_readme_names_a_result_file_that_exists() -> None:
    measured = README.split("## Measured")[1].split("\n## ")[0]
    results = re.findall(r"\]\((perf/results/[^)]+)\)", measured)
    assert results
    for result in results:
        assert (ROOT / result).is_file(), result


@pytest.mark.triton
@pytest.mark.parametrize("sample", samples(README, "python") + samples(PROTOCOL, "python"))
def test_python_samples_run(server: Server, sample: str, tmp_path: Path) -> None:
    (tmp_path / "sample.py").write_text(on(server, sample))
    subprocess.run([sys.executable, "sample.py"], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.triton
@pytest.mark.parametrize("sample", samples(README, "sh") + samples(PROTOCOL, "sh"))
def test_shell_samples_run(server: Server, sample: str, tmp_path: Path) -> None:
    script = re.sub(
        r"^(qwen3-tts \w+)", rf"\1 --url localhost:{server.grpc_port}", on(server, sample), flags=re.M
    )
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={"PATH": path},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b'"error"' not in done.stdout
    for wav in tmp_path.glob("*.wav"):
        assert wav.read_bytes()[:4] == b"RIFF"
