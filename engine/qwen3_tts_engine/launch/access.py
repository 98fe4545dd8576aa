"""Who may use what of Triton: the key of its restricted APIs, and the certificate of its gRPC port.

Whoever may load a model may run code, and the other restricted APIs read and write what is not the caller's:
for an operator, tritonserver never starts without a key to them. Speaking wants none. A key that is the same
for everybody and a flag of the process tells no callers apart; the gateway's keys do.

Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/customization_guide/inference_protocols.html
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_tts_engine.launch.tritonserver import LaunchError

RESTRICTED = ("model-repository", "shared-memory", "logging", "trace")
VARIABLE = "TRITON_API_KEY"
KEY_FILE = "triton_api_key"  # of a server directory, where the environment names no key
KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what a Bearer token may be: RFC 6750, 2.1


@dataclass(frozen=True)
class Access:
    """Of one server.

    Args:
        api_key: of the restricted APIs; empty leaves them open.
        certificate: PEM, the server's own first; with it the gRPC port speaks TLS and nothing else.
        private_key: PEM, of that certificate.
        key_file: where the key is kept, if that is not the environment.
    """

    api_key: str = field(default="", repr=False)
    certificate: Path | None = None
    private_key: Path | None = None
    key_file: Path | None = None

    @property
    def flags(self) -> list[str]:
        """Of tritonserver, which takes a key in no other way."""
        return [*self._lock(), *self._tls()]

    @property
    def http_headers(self) -> dict[str, str]:
        """What opens the restricted APIs over HTTP."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def _lock(self) -> list[str]:
        if not self.api_key:
            return []
        rule = f"{','.join(RESTRICTED)}:authorization=Bearer {self.api_key}"
        return [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]

    def _tls(self) -> list[str]:
        if self.certificate is None:
            return []
        return [
            "--grpc-use-ssl=true",
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.private_key}",
        ]


def access_from(environment: Mapping[str, str], server_dir: Path) -> Access:
    """As the environment has it; without a key there, with the one kept in the server directory.

    Raises:
        LaunchError: a key that no header carries, a file that is not there, half of a pair.
    """
    certificate, private_key = (_file(environment, f"TRITON_{what}_FILE") for what in ("CERT", "KEY"))
    if (certificate is None) != (private_key is None):
        raise LaunchError("TRITON_CERT_FILE and TRITON_KEY_FILE belong together; set both, or none")
    given = environment.get(VARIABLE)
    key_file = None if given else server_dir / KEY_FILE
    key = given or kept_key(server_dir / KEY_FILE)
    if not KEY.fullmatch(key):
        raise LaunchError(
            f"{key_file or VARIABLE} holds no Bearer token: letters, digits and any of ._~+/- make one"
        )
    return Access(key, certificate, private_key, key_file)


def kept_key(path: Path) -> str:
    """The key of this file, which its owner alone can read; made with the first start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            _publish(path, secrets.token_hex(32))
        return path.read_text().strip()
    except OSError as error:
        raise LaunchError(
            f"there is no {VARIABLE} in the environment, and {path} cannot be made or read: {error.strerror}"
        ) from error


def _publish(path: Path, key: str) -> None:
    """Complete from its first moment: another launch may be reading it."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{key}\n")
        os.link(draft, path)  # unlike a rename, this leaves one that is there already
    finally:
        draft.unlink()


def _file(environment: Mapping[str, str], name: str) -> Path | None:
    if not (value := environment.get(name)):
        return None
    path = Path(value).expanduser().absolute()
    if not os.access(path, os.R_OK) or not path.is_file():
        raise LaunchError(f"{name}={value}: no file that can be read")
    return path
