"""The gateway's command line as its users meet it: output, error lines and exit codes."""

import re
import subprocess
import sys
import types
from datetime import datetime, timedelta, timezone

import pytest

from qwen3_tts_gateway.cli import main
from qwen3_tts_gateway.key_file import KeyFile, hash_of
from qwen3_tts_gateway.keys import KeyRing
from qwen3_tts_gateway.settings import Settings


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No settings but the defaults, and none of this machine's."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def keys(tmp_path, capsys):
    """`keys("create", "app")`: its exit code, stdout and stderr."""

    def run(command, *args):
        code = main(["keys", command, "--file", str(tmp_path / "keys.json"), *args])
        return (code, *capsys.readouterr())

    return run


def stored_keys(tmp_path):
    return KeyFile(tmp_path / "keys.json").read()


def test_a_key_is_shown_once_on_stdout_and_lets_its_bearer_in(keys, tmp_path):
    code, out, err = keys("create", "app")
    assert code == 0
    assert re.fullmatch(r"qtts_[\w-]{43}\n", out)
    assert "only time" in err
    ring = KeyRing(Settings(_env_file=None, api_keys_file=str(tmp_path / "keys.json")))
    key = ring.authenticate(out.strip(), datetime.now(timezone.utc))
    assert (key.name, key.scopes, key.expires_at) == ("app", {"synth", "voices"}, None)


def test_every_term_of_a_key_has_a_flag(keys, tmp_path):
    flags = "--scopes admin,synth --expires-days 30 --requests-per-minute 6 --characters-per-minute 700"
    assert keys("create", "app", *flags.split(), "--max-streams", "2")[0] == 0
    [key] = stored_keys(tmp_path)
    assert key.scopes == ("admin", "synth")
    assert key.expires_at - key.created_at == timedelta(days=30)
    assert (key.requests_per_minute, key.characters_per_minute, key.max_streams) == (6, 700, 2)


def test_the_file_may_come_from_the_environment(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "keys.json"))
    assert main(["keys", "create", "app"]) == 0
    assert [key.name for key in stored_keys(tmp_path)] == ["app"]


def test_list_tells_all_but_what_lets_anybody_in(keys, tmp_path):
    secret = keys("create", "app", "--scopes", "synth", "--max-streams", "2")[1].strip()
    keys("create", "other", "--expires-days", "1")
    code, out, _ = keys("list")
    assert code == 0
    heading, app, other = (re.split(r" {2,}", line) for line in out.splitlines())
    assert heading == ["name", "key's hash", "scopes", "created", "expires", "limits", "voices under"]
    ring = KeyRing(Settings(_env_file=None, api_keys_file=str(tmp_path / "keys.json")))
    owner = ring.authenticate(secret, datetime.now(timezone.utc)).owner
    assert app[:3] + app[4:] == ["app", hash_of(secret)[:8] + "…", "synth", "never", "2 streams", owner]
    assert (other[2], other[5]) == ("synth,voices", "default")
    assert hash_of(secret)[:9] not in out
    assert secret not in out


def test_list_says_which_keys_have_expired(keys, tmp_path):
    keys("create", "app", "--expires-days", "1")
    path = tmp_path / "keys.json"
    path.write_text(
        re.sub(r'"expires_at": "[^"]*"', '"expires_at": "2020-01-02T00:00:00Z"', path.read_text())
    )
    assert "2020-01-02 (expired)" in keys("list")[1]


def test_a_revoked_key_is_no_longer_listed(keys):
    keys("create", "app")
    assert keys("revoke", "app") == (0, "", "")
    assert keys("list")[1].splitlines()[1:] == []


def test_what_cannot_be_done_is_one_line_on_stderr(keys):
    for command in (("list",), ("revoke", "app")):
        code, out, err = keys(*command)
        assert (code, out) == (1, "")
        assert re.fullmatch(r"qwen3-tts-gateway: there is no key file .*keys create NAME.*\n", err)
    keys("create", "app")
    code, out, err = keys("create", "app")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "has a key 'app'" in err
    assert "has no key 'ap'; it has app" in keys("revoke", "ap")[2]


def test_without_a_key_file_the_question_is_which(capsys):
    assert main(["keys", "list"]) == 1
    assert "Name it by --file or API_KEYS_FILE" in capsys.readouterr().err


def test_a_senseless_setting_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PORT", "http")
    assert main(["keys", "list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("qwen3-tts-gateway: PORT: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "COMMAND"),
        (["keys"], "COMMAND"),
        (["keys", "create"], "NAME"),
        (["keys", "create", "a b"], "'a b' is no name"),
        (["keys", "create", "anyone"], "take another name"),
        (["keys", "create", "app", "--scopes", "synth,sing"], "scopes are admin, synth, voices"),
        (["keys", "create", "app", "--scopes", ","], "scopes are admin, synth, voices"),
        (["keys", "create", "app", "--max-streams", "0"], "no whole number above 0"),
        (["keys", "create", "app", "--expires-days", "-1"], "no whole number above 0"),
        (["keys", "create", "app", "--expires-days", "40000"], "a hundred years"),
    ],
)
def test_a_wrong_command_line_is_told_so(args, complaint, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(args)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_serve_serves(monkeypatch):
    served = []
    serving = types.SimpleNamespace(serve=lambda: served.append(True))
    monkeypatch.setitem(sys.modules, "qwen3_tts_gateway.serving", serving)
    assert main(["serve"]) == 0
    assert served == [True]


def test_issuing_a_key_loads_no_web_server():
    program = (
        "import sys, qwen3_tts_gateway.cli; sys.exit(bool({'uvicorn', 'fastapi', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
