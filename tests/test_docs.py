"""The documentation says what is so, and its samples run."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from _pytest.mark import ParameterSet
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from gateway_server import GatewayServer
from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.config import VARIABLES, BaseConfig
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_engine.metrics import FAMILIES
from qwen3_tts_gateway.settings import Settings
from recordings import humming, written

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
MODELS = sorted(path.parent.name for path in ROOT.glob("model_repository/*/config.pbtxt"))
# Their parameters are in `## Model parameters`; those of the others, in the model's own section.
TALKERS = ("qwen3_tts_base", "qwen3_tts_custom_voice", "qwen3_tts_voice_design")

# Samples that set up a machine or run a whole server; other tests, or the README's own test command, do that.
NOT_RUN_HERE = re.compile(r"^([A-Z_]+=\S+ )?(make|pip install|docker run) ", flags=re.MULTILINE)


def model_config(model: str = "qwen3_tts_custom_voice") -> model_config_pb2.ModelConfig:
    config = ROOT / "model_repository" / model / "config.pbtxt"
    return text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())


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


def every_sample(language: str) -> list[ParameterSet]:
    """Those of every page, each known by its page and its place there."""
    return [
        pytest.param(sample, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, sample in enumerate(samples(page.read_text(), language), 1)
    ]


def here(sample: str, server: Server, gateway: GatewayServer) -> str:
    """A sample says the usual ports; the test's servers have their own."""
    ports = {"8000": server.http_port, "8001": server.grpc_port, "8080": gateway.url.rpartition(":")[2]}
    for usual, port in ports.items():
        sample = sample.replace(f"localhost:{usual}", f"localhost:{port}")
    return sample


@pytest.fixture
def desk(server: Server, tmp_path: Path) -> Iterator[Path]:
    """Where a sample runs: the recordings that samples name are there; voices it saves are gone after it."""
    (tmp_path / "me.wav").write_bytes(written(humming(3.0, seed=1)))
    (tmp_path / "grandpa.flac").write_bytes(written(humming(3.0, seed=2), form="FLAC"))
    yield tmp_path
    with SpeechClient(f"localhost:{server.grpc_port}") as tts:
        for voice in tts.voices.list():
            tts.voices.delete(voice.name)


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


@pytest.mark.parametrize(
    ("model", "parameter"),
    [
        (model, name)
        for model in MODELS
        if model not in TALKERS
        for name in sorted(model_config(model).parameters)
    ],
)
def test_every_parameter_of_the_other_models_is_documented_with_them(model: str, parameter: str) -> None:
    documented(parameter, f"`{model}`")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_sample_for_the_shell_and_one_in_python(model: str) -> None:
    own = section(f"`{model}`")
    assert any(f"/v2/models/{model}/" in sample for sample in samples(own, "sh")), "none with curl"
    assert any("qwen3_tts_client" in sample or f'"{model}"' in sample for sample in samples(own, "python")), (
        "none in Python"
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_metric_is_documented(family: object) -> None:
    name = family.name  # type: ignore[attr-defined]
    assert name in PROTOCOL


def test_every_environment_variable_is_in_the_example_file() -> None:
    example = (ROOT / ".env.example").read_text()
    variables = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", section("Model parameters")))
    assert variables >= set(VARIABLES)
    for variable in variables:
        assert re.search(rf"^#? ?{variable}=", example, flags=re.MULTILINE), variable


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_of_the_gateway_is_in_the_example_file(field: str) -> None:
    assert re.search(rf"^#? ?{field.upper()}=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)


def test_every_figure_in_the_readme_names_a_result_file_that_exists() -> None:
    measured = README.split("## Measured")[1].split("\n## ")[0]
    results = re.findall(r"\]\((perf/results/[^)]+)\)", measured)
    assert results
    for result in results:
        assert (ROOT / result).is_file(), result


@pytest.mark.triton
@pytest.mark.parametrize("sample", every_sample("python"))
def test_python_samples_run(server: Server, real_gateway: GatewayServer, sample: str, desk: Path) -> None:
    (desk / "sample.py").write_text(here(sample, server, real_gateway))
    subprocess.run([sys.executable, "sample.py"], cwd=desk, check=True, timeout=120)
    assert_plays(desk)


@pytest.mark.triton
@pytest.mark.parametrize("sample", every_sample("sh"))
def test_shell_samples_run(server: Server, real_gateway: GatewayServer, sample: str, desk: Path) -> None:
    script = here(sample, server, real_gateway)
    script = re.sub(r"^(qwen3-tts \w+)", rf"\1 --url localhost:{server.grpc_port}", script, flags=re.M)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=desk,
        env={"PATH": path},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    for told in (done.stdout, *(answer.read_bytes() for answer in desk.glob("*.json"))):
        assert b'"error"' not in told
        assert b'"detail"' not in told
    assert_plays(desk)


def assert_plays(desk: Path) -> None:
    for sound in (*desk.glob("*.wav"), *desk.glob("*.mp3")):
        assert soundfile.info(sound).frames > 0, sound.name


def test_every_fault_says_what_happens_and_names_a_test_that_is_there():
    table = (ROOT / "docs" / "reliability.md").read_text().split("\n\n| fault |")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        *cells, tests = (cell.strip() for cell in row.strip("|").split("|"))
        assert len(cells) == 5, row
        assert all(cells), row
        for file, name in re.findall(r"`([\w/.]+)::(\w+)`", tests) or pytest.fail(row):
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name
