"""What `make check` makes of the advisories: a finding fails, an excuse needs a finding, silence is told."""

import importlib.util
import sys
from types import ModuleType

import pytest

from real_server import ROOT

KNOWN = {"name": "jinja2", "version": "3.1.2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1", "GHSA-1"]}]}
FINE = {"name": "numpy", "version": "1.26.4", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
OURS = {"name": "qwen3-tts-inference-server", "skip_reason": "not on PyPI"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec
    assert spec.loader
    module = sys.modules["audit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_finding_fails_and_is_told_with_its_ids(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.judge(audit.Report.read([KNOWN, FINE, OURS]), set()) == 1
    assert "jinja2 3.1.2 has a known vulnerability: CVE-1, GHSA-1, PYSEC-1" in capsys.readouterr().err


def test_a_finding_is_excused_by_any_of_its_ids(audit: ModuleType) -> None:
    assert audit.judge(audit.Report.read([KNOWN, FINE]), {"GHSA-1"}) == 0


def test_an_excuse_that_nothing_needs_fails(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.judge(audit.Report.read([FINE]), {"GHSA-1"}) == 1
    assert "excuses GHSA-1, which nothing here has any more" in capsys.readouterr().err


def test_what_the_service_does_not_know_is_named(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.judge(audit.Report.read([FINE, UNKNOWN, OURS]), set()) == 0
    said = capsys.readouterr().err
    assert "not on PyPI, so not audited: torch" in said
    assert "1 packages audited, nothing to mend" in said


def test_a_service_that_knows_nothing_is_not_taken_for_a_clean_bill(
    audit: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.judge(audit.Report.read([UNKNOWN, OURS]), {"GHSA-1"}) == 0
    assert "NOT AUDITED" in capsys.readouterr().err


def test_a_service_out_of_reach_is_told(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complaint = "import sys; sys.exit('ConnectionError: no route to host')"
    monkeypatch.setattr(audit, "COMMAND", (sys.executable, "-c", complaint))
    assert audit.main() == 0
    assert "NOT AUDITED: the advisory service could not be asked (ConnectionError" in capsys.readouterr().err


def test_every_excuse_has_its_reason(audit: ModuleType) -> None:
    for excuse in audit.tomllib.loads(audit.EXCUSES.read_text())["excused"]:
        assert {*excuse} == {"id", "reason"}
        assert len(excuse["reason"]) > 20
