"""Are there known vulnerabilities in what is installed here? Asks PyPI's advisories, by pip-audit.

    python .ci/audit.py     # 0: none, or nobody could be asked, which it says; 1: findings

pip-audit itself calls it success when the service knows not a single package, as behind a mirror without the
advisory API. Findings that are known and harmless here are excused in audit.toml, each with its reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXCUSES = Path(__file__).with_name("audit.toml")
OURS = "qwen3-tts-inference-server"
COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--local", "--format", "json"),
    *("--progress-spinner", "off", "--timeout", "10"),
)


@dataclass(frozen=True)
class Report:
    """What came of it.

    Args:
        findings: package and version -> the ids of its advisories, aliases included.
        unknown: packages that the service does not know.
        num_audited: packages that it does.
    """

    findings: dict[str, list[set[str]]]
    unknown: list[str]
    num_audited: int

    @classmethod
    def read(cls, packages: Iterable[dict[str, Any]]) -> Report:
        packages = [package for package in packages if package["name"] != OURS]
        known = [package for package in packages if "skip_reason" not in package]
        findings = {
            f"{package['name']} {package['version']}": [
                {advisory["id"], *advisory["aliases"]} for advisory in package["vulns"]
            ]
            for package in known
            if package["vulns"]
        }
        unknown = [package["name"] for package in packages if "skip_reason" in package]
        return cls(findings, unknown, len(known))


def main() -> int:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        return not_audited(done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"])
    excuses = tomllib.loads(EXCUSES.read_text())["excused"]
    return judge(Report.read(json.loads(done.stdout)["dependencies"]), {one["id"] for one in excuses})


def judge(report: Report, excused: set[str]) -> int:
    if report.num_audited == 0:
        return not_audited([f"it knows none of {len(report.unknown)} packages"])
    found = {
        package: [sorted(advisory) for advisory in advisories if not advisory & excused]
        for package, advisories in report.findings.items()
    }
    for package, advisories in found.items():
        for ids in advisories:
            say(f"{package} has a known vulnerability: {', '.join(ids)}")
    every_id = {one for advisories in report.findings.values() for ids in advisories for one in ids}
    for stale in sorted(excused - every_id):
        say(f"{EXCUSES.name} excuses {stale}, which nothing here has any more; delete it")
    if report.unknown:
        say(f"not on PyPI, so not audited: {', '.join(report.unknown)}")
    num_bad = sum(map(len, found.values())) + len(excused - every_id)
    say(f"{report.num_audited} packages audited, {num_bad or 'nothing'} to mend")
    return 1 if num_bad else 0


def not_audited(reasons: list[str]) -> int:
    say(f"NOT AUDITED: the advisory service could not be asked ({'; '.join(reasons)})")
    return 0


def say(text: str) -> None:
    sys.stderr.write(f"audit: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
