"""The command line `qwen3-tts-gateway`: serve; keys create, list, revoke."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qwen3_tts_gateway.key_file import SCOPES, KeyFile, KeyFileError, KeyTerms, Scope, StoredKey, checked_name
from qwen3_tts_gateway.keys import owner_of
from qwen3_tts_gateway.settings import Settings, SettingsError

HEADING = ("name", "key's hash", "scopes", "created", "expires", "limits", "voices under")
LIMITS = {
    "requests_per_minute": "requests/min",
    "characters_per_minute": "characters/min",
    "max_streams": "streams",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 an error told in one line on stderr, 2 a wrong command line."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except KeyboardInterrupt:
        return 130
    except (KeyFileError, SettingsError) as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail("; ".join(_told(row) for row in error.errors()))
    return 0


def serve(args: argparse.Namespace) -> None:
    from qwen3_tts_gateway.serving import serve  # a web server is a lot to load for a key

    serve()


def create_key(args: argparse.Namespace) -> None:
    now = _now()
    terms = KeyTerms(
        name=args.name,
        scopes=args.scopes,
        expires_at=args.expires_days and now + timedelta(days=args.expires_days),
        **{limit: getattr(args, limit) for limit in LIMITS},
    )
    secret = _key_file(args).create(terms, now)
    print(secret)
    print("This is the only time the key is shown; the file keeps its hash.", file=sys.stderr)


def list_keys(args: argparse.Namespace) -> None:
    now = _now()
    rows = [HEADING, *(_row(stored, now) for stored in _key_file(args).read())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def revoke_key(args: argparse.Namespace) -> None:
    _key_file(args).revoke(args.name)


def _row(stored: StoredKey, now: datetime) -> tuple[str, ...]:
    limits = [
        f"{value} {unit}" for limit, unit in LIMITS.items() if (value := getattr(stored, limit)) is not None
    ]
    return (
        stored.name,
        f"{stored.sha256[:8]}…",
        ",".join(stored.scopes),
        f"{stored.created_at:%Y-%m-%d}",
        _expiry(stored.expires_at, now),
        ", ".join(limits) or "default",
        owner_of(stored.name),
    )


def _expiry(expires_at: datetime | None, now: datetime) -> str:
    if expires_at is None:
        return "never"
    return f"{expires_at:%Y-%m-%d}" + (" (expired)" if expires_at <= now else "")


def _key_file(args: argparse.Namespace) -> KeyFile:
    path = args.file or Settings().api_keys_file
    if not path:
        raise KeyFileError("which key file? Name it by --file or API_KEYS_FILE")
    return KeyFile(Path(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen3-tts-gateway",
        description="The HTTP gateway in front of Qwen3-TTS on Triton, and its keys.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "serve", serve, "serve HTTP until told to stop; the environment and .env configure it")
    keys = commands.add_parser("keys", help="issue, list and revoke API keys").add_subparsers(
        required=True, metavar="COMMAND"
    )

    create = _add_keys(keys, "create", create_key, "issue a key: it goes to stdout, once")
    create.add_argument(
        "name", type=_name, metavar="NAME", help="whose it is; its voices and limits go by the name"
    )
    scopes = ",".join(sorted(SCOPES))
    create.add_argument(
        "--scopes",
        type=_scopes,
        default=_scopes("synth,voices"),
        metavar="SCOPE,…",
        help=f"of {scopes} (synth,voices)",
    )
    create.add_argument("--expires-days", type=_days, metavar="N", help="how long it is valid (for ever)")
    for limit, unit in LIMITS.items():
        flag = "--" + limit.replace("_", "-")
        create.add_argument(
            flag, type=_positive, metavar="N", help=f"{unit} (what the gateway allows everybody)"
        )

    _add_keys(keys, "list", list_keys, "show the keys, without what would let anybody in")
    revoke = _add_keys(
        keys, "revoke", revoke_key, "forget a key; a running gateway does so with the next request"
    )
    revoke.add_argument("name", metavar="NAME")
    return parser


def _add(commands: Any, name: str, command: Callable[..., None], about: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(command=command)
    return parser


def _add_keys(commands: Any, name: str, command: Callable[..., None], about: str) -> argparse.ArgumentParser:
    parser = _add(commands, name, command, about)
    parser.add_argument("--file", metavar="PATH", help="the key file (API_KEYS_FILE)")
    return parser


def _name(text: str) -> str:
    try:
        return checked_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _scopes(text: str) -> tuple[Scope, ...]:
    wanted = {part.strip() for part in text.split(",") if part.strip()}
    if not wanted or wanted - SCOPES:
        raise argparse.ArgumentTypeError(f"{text!r}: scopes are {', '.join(sorted(SCOPES))}")
    return tuple(scope for scope in sorted(SCOPES) if scope in wanted)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _days(text: str) -> int:
    if (days := _positive(text)) > 36_500:
        raise argparse.ArgumentTypeError(f"{text} days are more than a hundred years")
    return days


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def _told(row: ErrorDetails) -> str:
    """Which variable is wrong, and how; not its value, which may be a key."""
    where = ".".join(map(str, row["loc"])).upper()
    return f"{where}: {row['msg'].removeprefix('Value error, ')}"


def _fail(message: str) -> int:
    print(f"qwen3-tts-gateway: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
