"""Key files that somebody edited, and keys that nobody issued."""

import json
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import strategies as st

from fuzzing import anything, fuzz, mutated
from gateway_server import settings
from qwen3_tts_engine.launch.access import KEY, Access, access_from
from qwen3_tts_engine.launch.tritonserver import LaunchError
from qwen3_tts_gateway.errors import Unauthorized
from qwen3_tts_gateway.key_file import KeyFile, KeyFileError, KeyTerms
from qwen3_tts_gateway.keys import KeyRing, presented_key

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
STORED = {
    "name": "alice",
    "scopes": ["synth"],
    "expires_at": None,
    "requests_per_minute": 60,
    "characters_per_minute": None,
    "max_streams": 2,
    "sha256": "0" * 64,
    "created_at": "2026-01-02T03:04:05Z",
}
WHOLE = json.dumps({"keys": [STORED]}).encode()
ODD = st.dictionaries(st.sampled_from([*STORED]), anything, max_size=3).map(
    lambda odd: json.dumps({"keys": [STORED | odd]}).encode()
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@fuzz(250, contents=mutated(st.just(WHOLE)) | ODD | st.binary(max_size=200))
def test_a_key_file_is_read_or_refused_without_showing_what_is_in_it(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)
    complaint = ""
    try:
        KeyFile(path).read()
    except KeyFileError as error:
        complaint = str(error)
    assert STORED["sha256"] not in complaint


@fuzz(
    250,
    headers=st.dictionaries(st.sampled_from(["authorization", "x-api-key", "api-key"]), st.text(max_size=60)),
)
def test_a_key_that_nobody_issued_opens_nothing(path: Path, headers: dict[str, str]) -> None:
    path.unlink(missing_ok=True)
    KeyFile(path).create(KeyTerms(name="alice", scopes=("synth",)), NOW)
    ring = KeyRing(settings(api_keys_file=str(path), api_keys=("the-one",)))
    with suppress(Unauthorized):
        assert ring.authenticate(presented_key(headers), NOW).name == "never"
    assert ring.authenticate("the-one", NOW).name


@fuzz(150, key=st.text(max_size=60) | st.from_regex(KEY, fullmatch=True))
def test_tritons_key_is_one_flags_and_headers_carry_or_refused(path: Path, key: str) -> None:
    with suppress(LaunchError):
        access = access_from({"TRITON_API_KEY": key}, path.parent)
        assert access.api_key.isascii()
        assert access.api_key.isprintable()
        assert access.flags == Access(access.api_key).flags
        assert len(access.flags) == 2
