"""What reads bytes of strangers, fed by atheris, which looks for those that reach new code.

python tests/fuzz/guided.py TARGET RUNS [SEED]
"""

from __future__ import annotations

import base64
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import atheris
from httpx import InvalidURL
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["qwen3_tts_engine", "qwen3_tts_client", "qwen3_tts_gateway"]):
    from qwen3_tts_client import InvalidRequest as CallersFault
    from qwen3_tts_client.archive import reading_archive
    from qwen3_tts_engine.errors import EngineFailed, InvalidRequest
    from qwen3_tts_engine.reference_audio.complete import is_complete
    from qwen3_tts_engine.reference_audio.kinds import Kind, unwrap
    from qwen3_tts_engine.reference_audio.limits import Limits
    from qwen3_tts_engine.voices.format import digest_of, read_entry, read_object
    from qwen3_tts_engine.voices.mixing import parse
    from qwen3_tts_engine.voices.names import check_name
    from qwen3_tts_gateway.errors import GatewayError
    from qwen3_tts_gateway.fetching import _Unfetchable as Unfetchable
    from qwen3_tts_gateway.fetching import checked_target
    from qwen3_tts_gateway.key_file import KeyFile, KeyFileError
    from qwen3_tts_gateway.routes.conversation import Over
    from qwen3_tts_gateway.routes.conversation import _command as read_command
    from qwen3_tts_gateway.routes.openai import SpeechBody
    from qwen3_tts_gateway.splitting import Splitter

from recordings import KINDS, recording

MOST_BYTES = 20_000
LETTER = re.compile(r"[^\W_]")
HOSTS = ("media.example.com", "*.cdn.example.com:8443")


@dataclass(frozen=True)
class Target:
    """What is fed, how that may end besides well, and what it begins with."""

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: Iterable[bytes] = ()

    def __call__(self, data: bytes) -> None:
        with suppress(*self.refusals):
            self.read(data)


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def read_voice(data: bytes) -> None:
    read_object("grandpa", digest_of(data), data)


def read_recording(data: bytes) -> None:
    kind, file = unwrap(data, Limits().max_bytes)
    is_complete(kind, file)


def read_archive(data: bytes) -> None:
    FILE.write_bytes(data)
    with reading_archive(FILE):
        pass


def read_keys(data: bytes) -> None:
    FILE.write_bytes(data)
    KeyFile(FILE).read()


def read_url(data: bytes) -> None:
    target = checked_target(text_of(data), HOSTS)
    assert target.url.scheme == b"https"
    assert (target.host, target.port) == ("media.example.com", 443) or (
        target.host.endswith(".cdn.example.com") and target.port == 8443
    )


def split(data: bytes) -> None:
    """No letter of a text gets lost, and where it is cut makes no difference."""
    text = text_of(data)
    parts = parts_of(text)
    assert LETTER.findall("".join(parts)) == LETTER.findall(text)
    assert parts_of(text[: len(text) // 2], text[len(text) // 2 :]) == parts


def parts_of(*texts: str) -> list[str]:
    parts: list[str] = []
    sentences = Splitter("clause")
    for text in texts:
        sentences.add(text)
        parts += iter(sentences.pop, None)
    sentences.end()
    return [*parts, *iter(sentences.pop, None)]


def voice_seeds() -> tuple[bytes, bytes]:
    import numpy as np

    from qwen3_tts_engine.request import VoicePrompt
    from qwen3_tts_engine.voices.format import write_entry, write_object
    from qwen3_tts_engine.voices.voice import Voice

    prompt = VoicePrompt(np.ones(8, np.float32), np.ones((1, 16), np.int64), "Hello.")
    voice = Voice("grandpa", prompt, "2026-01-02T03:04:05Z", "tiny", {})
    written = write_object(voice)
    return written, write_entry(voice, digest_of(written))


def archive_seed() -> bytes:
    import numpy as np

    from qwen3_tts_client import VoicePrompt
    from qwen3_tts_client.archive import ArchivedVoice, SavedVoice, writing_archive

    prompt = VoicePrompt(np.ones(8, np.float32), np.ones((1, 16), np.int32), "Hello.")
    with writing_archive(FILE) as archive:
        archive.add(
            ArchivedVoice(
                SavedVoice("grandpa", "2026-01-02T03:04:05Z", "tiny", False, "Hello.", metadata={}), prompt
            )
        )
    return FILE.read_bytes()


FOLDER = tempfile.TemporaryDirectory()
FILE = Path(FOLDER.name, "file")  # of what is read from one
KEYS = (
    b'{"keys": [{"name": "app", "scopes": ["synth"], "sha256": "%s", "created_at": "2026-01-02T03:04:05Z"}]}'
    % (b"0" * 64)
)
CONFIG = b'{"type": "session.config", "voice": "ryan", "response_format": "pcm", "stream_audio": true}'
BODY = b'{"input": "Hello.", "voice": {"id": "ryan"}, "response_format": "mp3", "speed": 1.5, "seed": 3}'
SOUNDS = [recording(kind, 0.1) for kind in KINDS]
OBJECT, ENTRY = voice_seeds()
TARGETS = {
    "names": Target(lambda data: check_name(text_of(data), ["Ryan"]), (InvalidRequest,), [b"grandpa"]),
    "mixes": Target(lambda data: parse(text_of(data)), (InvalidRequest,), [b"a(2)+b(.5)+c"]),
    "entries": Target(lambda data: read_entry("grandpa", data), (EngineFailed,), [ENTRY]),
    "objects": Target(read_voice, (EngineFailed,), [OBJECT]),
    "archives": Target(read_archive, (CallersFault,), [archive_seed()]),
    "keys": Target(read_keys, (KeyFileError,), [KEYS]),
    "bodies": Target(SpeechBody.model_validate_json, (ValidationError,), [BODY]),
    "messages": Target(
        lambda data: read_command({"type": "websocket.receive", "text": text_of(data)}),
        (GatewayError, Over),
        [CONFIG, b'{"type": "input.text", "text": "Hello."}', b'{"type": "input.done"}'],
    ),
    "recordings": Target(read_recording, (InvalidRequest,), [*SOUNDS, base64.b64encode(SOUNDS[0])]),
    "ends": Target(lambda data: [is_complete(kind, data) for kind in Kind], (), SOUNDS),
    "urls": Target(
        read_url,
        (Unfetchable, InvalidURL),
        [b"https://media.example.com/a?b", b"https://x.cdn.example.com:8443/"],
    ),
    "sentences": Target(split, (), ["One. Two, three! “四。”".encode()]),
}


def main(name: str, num_runs: str, seed: str = "0") -> None:
    """With the seed 0 each time others."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(TARGETS[name].seeds):
            Path(corpus, str(number)).write_bytes(content)
        flags = [
            f"-runs={num_runs}",
            f"-seed={seed}",
            f"-max_len={MOST_BYTES}",
            "-timeout=60",
            "-rss_limit_mb=2048",
        ]
        atheris.Setup([name, *flags, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
