"""What is in docker/, read as those read it who run it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from queries import every_query
from real_server import ROOT

DOCKER = ROOT / "docker"
Document = dict[str, Any]


class ComposeLoader(yaml.SafeLoader):
    """YAML with compose's `!reset` and `!override`, which say how a file lies over another."""


def _plain(loader: ComposeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return None


ComposeLoader.add_multi_constructor("!", _plain)


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """`script("start")`: docker/start.py as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
        assert spec
        assert spec.loader
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def compose() -> Document:
    return yaml.load((DOCKER / "compose.yaml").read_text(), ComposeLoader)


@pytest.fixture(scope="session")
def compose_dev() -> Document:
    return yaml.load((DOCKER / "compose.dev.yaml").read_text(), ComposeLoader)


@pytest.fixture(scope="session")
def base() -> list[Document]:
    """The objects of the Kubernetes base, as they are written."""
    kustomization = yaml.safe_load((DOCKER / "kubernetes/base/kustomization.yaml").read_text())
    files = [DOCKER / "kubernetes/base" / name for name in kustomization["resources"]]
    return [document for file in files if file.is_file() for document in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, script: Callable[[str], ModuleType]) -> Path:
    """A copy of docker/, with new secrets."""
    copy = tmp_path_factory.mktemp("checkout") / "docker"
    shutil.copytree(DOCKER, copy, ignore=lambda folder, names: set(names) & set(secret_names(script)))
    script("make_secrets").make(copy / "secrets")
    return copy


def secret_names(script: Callable[[str], ModuleType]) -> list[str]:
    return [name for group in script("make_secrets").groups() for name in group]


@pytest.fixture(scope="session")
def rendered(checkout: Path) -> Callable[[str], list[Document]]:
    """`rendered("overlays/gpu")`: the objects that Kustomize makes of it."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on this machine, which brings Kustomize")

    def render(folder: str) -> list[Document]:
        command = ["kubectl", "kustomize", str(checkout / "kubernetes" / folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    return render


@pytest.fixture(scope="session")
def example_variables() -> set[str]:
    """Every variable of .env.example."""
    return set(re.findall(r"^#? ?([A-Z_0-9]+)=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))


@pytest.fixture(scope="session")
def queries() -> dict[str, str]:
    """Every PromQL there is, by where it stands."""
    return dict(every_query())
