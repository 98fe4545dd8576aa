"""Who is let in, as whom, and who is not."""

import hashlib
import hmac
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from qwen3_tts_gateway.errors import Unauthorized
from qwen3_tts_gateway.key_file import KeyFile, KeyFileError, KeyTerms
from qwen3_tts_gateway.keys import ANYONE, OWNER_LENGTH, Key, KeyRing, presented_key
from qwen3_tts_gateway.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def file(path) -> KeyFile:
    return KeyFile(path)


def ring(*api_keys, file: Path | None = None) -> KeyRing:
    return KeyRing(Settings(_env_file=None, api_keys=api_keys, api_keys_file=file and str(file)))


def create(file: KeyFile, name: str = "app", **terms) -> str:
    return file.create(KeyTerms(name=name, **{"scopes": ("synth",), **terms}), NOW)


def refusal(ring: KeyRing, presented: str | None, now: datetime = NOW) -> str:
    with pytest.raises(Unauthorized) as error:
        ring.authenticate(presented, now)
    return str(error.value)


def test_where_no_key_is_configured_anyone_may_call():
    open_ring = ring()
    assert open_ring.is_open
    for presented in (None, "whatever"):
        assert open_ring.authenticate(presented, NOW) is ANYONE
    assert ANYONE.scopes == {"synth", "voices", "admin"}
    assert (ANYONE.name, ANYONE.owner) == ("anyone", "")


def test_a_key_of_the_environment_may_do_everything_under_its_hash():
    key = ring("first", "second").authenticate("second", NOW)
    digest = hashlib.sha256(b"second").hexdigest()
    assert key == Key(f"env-{digest[:8]}", frozenset({"synth", "voices", "admin"}))
    assert key.owner == hashlib.sha256(key.name.encode()).hexdigest()[:12]


@pytest.mark.parametrize("presented", [None, "", "third", "firs", "first ", "FIRST", "schlüssel", "\udcff"])
def test_who_presents_no_key_or_another_one_is_refused(presented):
    message = refusal(ring("first", "second"), presented)
    assert message == refusal(ring("first", "second"), "unheard of" if presented else None)


def test_a_key_that_no_header_carries_is_refused_at_the_start_without_being_shown():
    with pytest.raises(ValueError, match=r"^API_KEYS: key 2 has characters") as error:
        ring("first", "schlüssel")
    assert "schlüssel" not in str(error.value)


def test_a_key_of_the_file_has_its_own_scopes_and_limits(file, path):
    expires_at = NOW + timedelta(days=1)
    limits = {"requests_per_minute": 60, "characters_per_minute": 900, "max_streams": 2}
    secret = create(file, scopes=("synth", "voices"), expires_at=expires_at, **limits)
    key = ring(file=path).authenticate(secret, NOW)
    assert key == Key("app", frozenset({"synth", "voices"}), expires_at, **limits)


def test_keys_of_the_environment_and_of_the_file_are_known_side_by_side(file, path):
    secret = create(file)
    both = ring("first", file=path)
    assert not both.is_open
    assert both.authenticate(secret, NOW).name == "app"
    assert both.authenticate("first", NOW).name.startswith("env-")


def test_a_key_is_valid_until_the_moment_it_expires(file, path):
    secret = create(file, expires_at=NOW)
    known = ring(file=path)
    assert known.authenticate(secret, NOW - timedelta(microseconds=1))
    assert "expired" in refusal(known, secret, NOW)


def test_every_known_key_is_compared_and_none_by_equals(file, path, monkeypatch):
    secrets = [create(file, name) for name in ("a", "b", "c")]
    known = ring("first", file=path)
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair))
    for presented in (*secrets, "first"):
        compared.clear()
        assert known.authenticate(presented, NOW)
        assert len(compared) == 4


def test_a_revoked_key_is_refused_without_a_restart_exactly_as_an_unknown_one(file, path):
    secret = create(file)
    known = ring(file=path)
    assert known.authenticate(secret, NOW)
    file.revoke("app")
    assert refusal(known, secret) == refusal(known, "qtts_" + "x" * 43)


def test_revoking_the_last_key_lets_nobody_in(file, path):
    create(file)
    known = ring(file=path)
    file.revoke("app")
    refusal(known, None)
    assert not known.is_open
    assert not ring(file=path).is_open


def test_a_rotated_key_keeps_its_owner(file, path):
    old = create(file)
    known = ring(file=path)
    owner = known.authenticate(old, NOW).owner
    file.revoke("app")
    refusal(known, old)
    new = create(file)
    assert known.authenticate(new, NOW).owner == owner
    refusal(known, old)


def test_another_name_is_another_owner(file, path):
    secrets = [create(file, name) for name in ("app", "App")]
    owners = {ring(file=path).authenticate(secret, NOW).owner for secret in secrets}
    assert len(owners) == 2
    assert all(len(owner) == OWNER_LENGTH and int(owner, 16) >= 0 for owner in owners)


def test_the_file_is_read_again_only_when_it_changed(file, path, monkeypatch):
    secret = create(file)
    known = ring(file=path)
    monkeypatch.setattr(KeyFile, "read", lambda self: pytest.fail("it was read"))
    assert known.authenticate(secret, NOW)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text('{"keys": [')])
def test_a_file_that_breaks_keeps_the_keys_there_were_and_is_complained_about_once(file, path, spoil, caplog):
    secret = create(file)
    known = ring(file=path)
    spoil(path)
    for _ in range(3):
        assert known.authenticate(secret, NOW)
    [record] = caplog.records
    assert (record.levelname, str(path) in record.message) == ("ERROR", True)
    assert "the keys read before stay in force" in record.message


def test_a_file_that_was_mended_counts_again(file, path, caplog):
    old = create(file)
    known = ring(file=path)
    for _ in range(2):
        path.write_text("noise")
        assert known.authenticate(old, NOW)
        path.unlink()
        new = create(file)
        refusal(known, old)
        assert known.authenticate(new, NOW)
        old = new
    assert len(caplog.records) == 2


def test_a_file_that_is_missing_or_broken_at_the_start_is_refused_by_name(path):
    with pytest.raises(KeyFileError, match=rf"^there is no key file {path}: .*keys create"):
        ring(file=path)
    path.write_text("noise")
    with pytest.raises(KeyFileError, match=rf"^the key file {path} is broken: "):
        ring(file=path)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"X-API-Key": "k"}, "k"),
        ({"x-api-key": " k "}, "k"),
        ({"Authorization": "Bearer k"}, "k"),
        ({"Authorization": "bearer  k"}, "k"),
        ({"Authorization": "Api-Key k"}, "k"),
        ({"Api-Key": "k"}, "k"),
        ({"Authorization": "Bearer"}, None),
        ({"Authorization": "Bearer "}, None),
        ({"Authorization": "Basic dTpw"}, None),
        ({"Authorization": "k"}, None),
        ({"X-API-Key": ""}, None),
        ({"X-API-Key": "", "Authorization": "Bearer k"}, "k"),
        ({"Authorization": "Bearer ", "Api-Key": "k"}, "k"),
        ({"Authorization": "Basic dTpw", "X-API-Key": "k"}, "k"),
        ({"X-API-Key": "k", "Authorization": "Bearer other"}, "k"),
    ],
)
def test_a_key_is_found_wherever_clients_put_it(headers, key):
    assert presented_key(Headers(headers)) == key
