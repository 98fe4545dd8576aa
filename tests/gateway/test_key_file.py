"""The file that keys are kept in: what stands in it, and what becomes of it when something goes wrong."""

import json
import os
import threading
from datetime import datetime, timezone
from pathlib import Path

import pytest
from pydantic import ValidationError

from qwen3_tts_gateway.key_file import KeyFile, KeyFileError, KeyTerms, hash_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
APP = KeyTerms(name="app", scopes=("synth",))
ENTRY = {
    "name": "app",
    "scopes": ["synth"],
    "expires_at": None,
    "requests_per_minute": None,
    "characters_per_minute": None,
    "max_streams": None,
    "sha256": "0" * 64,
    "created_at": "2026-01-02T03:04:05Z",
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def file(path) -> KeyFile:
    return KeyFile(path)


def test_a_key_is_stored_as_its_hash_for_its_owners_eyes_only(file, path):
    secret = file.create(APP, NOW)
    assert json.loads(path.read_text()) == {"keys": [ENTRY | {"sha256": hash_of(secret)}]}
    assert secret not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_secrets_are_long_and_differ_and_can_be_told_when_they_leak(file):
    secrets = [file.create(KeyTerms(name=name, scopes=("synth",)), NOW) for name in "abc"]
    assert len(set(secrets)) == 3
    assert all(secret.startswith("qtts_") and len(secret) == 5 + 43 for secret in secrets)


def test_a_name_is_given_once(file, path):
    file.create(APP, NOW)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="has a key 'app': revoke it first"):
        file.create(APP, NOW)
    assert path.read_bytes() == before


def test_a_revoked_key_is_gone_and_the_others_stay(file):
    file.create(APP, NOW)
    file.create(KeyTerms(name="other", scopes=("admin",)), NOW)
    file.revoke("app")
    assert [key.name for key in file.read()] == ["other"]


def test_who_revokes_a_name_that_is_not_there_is_told_which_are(file):
    file.create(APP, NOW)
    with pytest.raises(KeyFileError, match=r"has no key 'ap'; it has app$"):
        file.revoke("ap")


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "ä", "a\n", "a" * 65, "anyone", "env-0123abcd"])
def test_a_name_that_others_go_by_or_that_no_log_can_show_is_refused(name):
    with pytest.raises(ValidationError, match="name"):
        KeyTerms(name=name, scopes=("synth",))


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ("", "Invalid JSON"),
        ("[]", "should be an object"),
        ("{}", "keys: Field required"),
        ({"keys": [], "kyes": []}, "kyes: Extra inputs"),
        ({"keys": [ENTRY | {"scope": "synth"}]}, r"keys\.0\.scope: Extra inputs"),
        ({"keys": [ENTRY | {"scopes": ["sing"]}]}, r"keys\.0\.scopes\.0: .*'admin'"),
        ({"keys": [ENTRY | {"scopes": []}]}, r"keys\.0\.scopes: "),
        ({"keys": [ENTRY | {"sha256": "deadbeef"}]}, r"keys\.0\.sha256: "),
        ({"keys": [ENTRY | {"expires_at": "2026-01-02T03:04:05"}]}, r"keys\.0\.expires_at: .*timezone"),
        ({"keys": [ENTRY | {"max_streams": 0}]}, r"keys\.0\.max_streams: "),
        ({"keys": [ENTRY | {"name": "anyone"}]}, r"keys\.0\.name: 'anyone' is what the gateway calls"),
        ({"keys": [ENTRY, ENTRY]}, "keys: two keys are called 'app'"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_place_and_left_as_it_is(file, path, contents, complaint):
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
    before = path.read_bytes()
    for attempt in (file.read, lambda: file.create(APP, NOW), lambda: file.revoke("app")):
        with pytest.raises(KeyFileError, match=rf"^the key file {path} is broken: .*{complaint}") as error:
            attempt()
        assert "deadbeef" not in str(error.value)
    assert path.read_bytes() == before


def test_a_change_that_fails_leaves_the_old_file_and_no_litter(file, path, monkeypatch):
    file.create(APP, NOW)
    before, names = path.read_bytes(), sorted(path.parent.iterdir())

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyFileError, match=rf"{path} cannot be written: No space left"):
        file.revoke("app")
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == names


def test_a_directory_that_is_missing_is_named(tmp_path):
    with pytest.raises(KeyFileError, match=r"nowhere/keys.json cannot be written: No such file"):
        KeyFile(tmp_path / "nowhere" / "keys.json").create(APP, NOW)


def test_a_link_to_the_file_stays_one(path, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(path)
    KeyFile(link).create(APP, NOW)
    assert link.is_symlink()
    assert [key.name for key in KeyFile(path).read()] == ["app"]


def test_those_who_issue_keys_at_once_undo_nothing(path):
    names = [f"key-{number}" for number in range(12)]

    def create(name):
        KeyFile(path).create(KeyTerms(name=name, scopes=("synth",)), NOW)

    threads = [threading.Thread(target=create, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyFile(path).read()) == sorted(names)


def test_the_stamp_changes_with_the_file(file, path):
    stamps = [file.stamp()]
    file.create(APP, NOW)
    stamps.append(file.stamp())
    file.revoke("app")
    stamps.append(file.stamp())
    path.unlink()
    assert file.stamp() == stamps[0] == ()
    assert len(set(stamps)) == 3
