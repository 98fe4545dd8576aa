"""Makes the secrets that compose and Kustomize read, in docker/secrets/, and leaves those that are there.

python3 docker/make_secrets.py
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "secrets"


def groups() -> Iterator[dict[str, str]]:
    """New files, by name, each with those that are of no use without it."""
    for name in ("api_keys", "grafana_admin_password", "triton_api_key"):
        yield {name: secrets.token_hex(32)}
    password = secrets.token_hex(32)
    yield {
        "limits_store": f"redis://qwen3-tts:{password}@redis:6379/1",
        "voice_store": f"redis://qwen3-tts:{password}@redis:6379/0",
        # Whoever has no password may ask whether it is alive.
        "redis_users.acl": "user default on nopass resetkeys resetchannels -@all +ping\n"
        f"user qwen3-tts on >{password} ~* &* +@all -@dangerous\n",
    }


def make(folder: Path) -> list[Path]:
    """Write the groups of which nothing is there yet. Only the folder's owner can reach into it."""
    folder.chmod(0o700)
    made = []
    for group in groups():
        paths = {folder / name: text for name, text in group.items()}
        if not any(path.exists() for path in paths):
            for path, text in paths.items():
                path.write_text(text)
                path.chmod(0o644)  # containers get the file itself, and read it as users of their own
                made.append(path)
    return made


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in make(FOLDER))
