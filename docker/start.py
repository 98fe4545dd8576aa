"""What the images run: a command with its secrets from files, or Triton, locked with its key.

    python3 start.py triton [options of qwen3_tts_engine.launch.launcher] [-- tritonserver flags]
    python3 start.py COMMAND [arguments]

A file /run/secrets/NAME is the variable NAME in capitals, unless the environment has that variable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SECRETS = Path("/run/secrets")


def environment_with(secrets: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The environment over the files; a value that is empty is none, in either."""
    files = {file.name.upper(): file.read_text().strip() for file in secrets.glob("*") if file.is_file()}
    merged = {**files, **{name: value for name, value in given.items() if value}}
    return {name: value for name, value in merged.items() if value}


def triton(options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "qwen3_tts_engine.launch.launcher", "--log-path", "/dev/stdout", *options]


def main(command: Sequence[str]) -> None:
    if not command:
        sys.exit(__doc__)
    environment = environment_with(SECRETS, os.environ)
    if command[0] == "triton":
        # The launcher would make one, which nobody outside of this container has.
        if "TRITON_API_KEY" not in environment:
            sys.exit(
                f"error: no TRITON_API_KEY, neither in the environment nor in {SECRETS}: run make_secrets.py"
            )
        command = triton(command[1:])
    os.execvpe(command[0], list(command), environment)


if __name__ == "__main__":
    main(sys.argv[1:])
