"""Whatever takes long is done beside the event loop: whoever else is there is served meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from fakes.triton_server import PATIENCE_S
from qwen3_tts_gateway import fetching, recordings, speech
from qwen3_tts_gateway.routes import batch, original

HELLO = {"input": "Hello.", "voice": "ryan", "response_format": "wav"}
RYAN = {"text": "Hello.", "speaker": "ryan"}
TIMBRE = {"text": "Hello.", "x_vector_only_mode": True}
BATCH = {"texts": ["Hello."], "speakers": ["ryan"]}


@pytest.mark.parametrize(
    ("module", "work", "path", "body"),
    [
        (speech, "encode_whole", "/v1/audio/speech", HELLO),
        (batch, "base64_text", "/v1/audio/speech/batch", {"items": [HELLO]}),
        (batch.BatchAnswer, "model_dump_json", "/v1/audio/speech/batch", {"items": [HELLO]}),
        (original, "base64_text", "/api/v1/custom-voice/generate", RYAN | {"response_format": "base64"}),
        (original, "base64_text", "/api/v1/custom-voice/batch", BATCH),
        (original, "_zipped", "/api/v1/custom-voice/batch", BATCH | {"response_format": "zip"}),
        (recordings, "_decoded", "/api/v1/base/clone", TIMBRE | {"ref_audio_base64": "UklGRg=="}),
        (fetching, "_inline", "/api/v1/base/clone", TIMBRE | {"ref_audio_url": "data:;base64,UklGRg=="}),
    ],
)
def test_others_are_served_while_this_takes_its_time(
    http: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    work: str,
    path: str,
    body: dict[str, Any],
) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()
    do = getattr(module, work)

    def do_slowly(*args: Any) -> Any:
        has_begun.set()
        assert may_go_on.wait(PATIENCE_S), "nobody was served meanwhile"
        return do(*args)

    monkeypatch.setattr(module, work, do_slowly)
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(http.post, path, json=body)
        assert has_begun.wait(PATIENCE_S)
        assert http.get("/health").status_code == 200
        may_go_on.set()
        assert asked.result().status_code == 200
