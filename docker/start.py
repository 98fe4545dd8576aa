"""What the images run: a command with its secrets from files, or Triton with its restricted APIs locked.

    python3 start.py triton [options of qwen3_tts_engine.launcher] [-- tritonserver flags]
    python3 start.py COMMAND [arguments]

A file /run/secrets/NAME is the variable NAME in capitals, unless the environment has that variable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SECRETS = Path("/run/secrets")
RESTRICTED = "model-repository,shared-memory,logging,trace"
"""To load a model is to run its code; the others read and write what is not the caller's."""


def environment_with(secrets: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment over the files; a value that is empty is none, in either."""
    files = {file.name.upper(): file.read_text().strip() for file in secrets.glob("*") if file.is_file()}
    merged = {**files, **{name: value for name, value in given.items() if value}}
    return {name: value for name, value in merged.items() if value}


def triton(options: Sequence[str], key: str) -> list[str]:
    """The launcher's command line. A flag is the only way to give tritonserver the key."""
    rule = f"{RESTRICTED}:authorization=Bearer {key}"
    return [
        *(sys.executable, "-m", "qwen3_tts_engine.launcher", "--log-path", "/dev/stdout"),
        *options,
        *([] if "--" in options else ["--"]),
        *(f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"),
    ]


def main(command: Sequence[str]) -> None:
    if not command:
        sys.exit(__doc__)
    environment = environment_with(SECRETS, os.environ)
    if command[0] == "triton":
        key = environment.pop("TRITON_API_KEY", "")
        if not key:
            sys.exit(
                f"error: no TRITON_API_KEY, neither in the environment nor in {SECRETS}: run make_secrets.py"
            )
        command = triton(command[1:], key)
    os.execvpe(command[0], list(command), environment)


if __name__ == "__main__":
    main(sys.argv[1:])
