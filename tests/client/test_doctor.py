"""`qwen3-tts doctor` as an operator at night meets it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from fakes.triton_server import MODEL_INPUTS, RefusalError, says, triton
from qwen3_tts_client.alerts import ALERTS
from qwen3_tts_client.cli import main

EVERY = tuple(MODEL_INPUTS)

FULL = """
# TYPE qwen3_tts_slots gauge
qwen3_tts_slots{model="qwen3_tts_base",version="1"} 16
qwen3_tts_active_slots{model="qwen3_tts_base",version="1"} 16
qwen3_tts_frames_total{model="qwen3_tts_base",version="1"} %d
"""


def refuses(call):
    raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "unknown speaker 'rian'; this model has ryan")
    yield


@contextmanager
def metrics(*pages: str) -> Iterator[str]:
    """The URL of a page that says these, one after the other, and then nothing."""
    coming = iter(pages)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = next(coming, "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


@pytest.fixture
def doctor(dead_url):
    """`doctor(url, "--explain", "NoAudio")`; it looks at no metrics but those given, and waits for none."""

    def run(url: str, *flags: str) -> int:
        pages = [] if "--metrics" in flags else ["--metrics", f"http://{dead_url}/metrics"]
        return main(["doctor", "--url", url, "--watch", "0", *pages, *flags])

    return run


def test_doctor_finds_a_healthy_server_healthy(doctor, capsys):
    with triton(says(3), models=["qwen3_tts_custom_voice"]) as server:
        assert doctor(server.url) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", "client:"],
        ["ok", "server:"],
        ["ok", "models:"],
        ["ok", "repository:"],
        ["ok", "qwen3_tts_custom_voice:"],
        ["ok", "speech:"],
        ["ok", "alerts:"],
    ]
    assert "triton 2.51.0" in out
    assert "0.24 s" in out


def test_doctor_says_how_to_start_a_server_that_is_not_there(doctor, dead_url, capsys):
    assert doctor(dead_url) == 1
    out = capsys.readouterr().out
    assert f"failed  server: {dead_url}" in out
    assert "to fix: start it (`make serve`)" in out


def test_doctor_tells_when_no_model_is_ready(doctor, capsys):
    with triton(says(1), models=[]) as server:
        assert doctor(server.url) == 1
    assert "failed  models: none of qwen3_tts_custom_voice" in capsys.readouterr().out


def test_doctor_names_inputs_the_server_does_not_know(doctor, capsys):
    older = MODEL_INPUTS["qwen3_tts_custom_voice"] | {"seed": "INT32"}
    del older["max_frames"]
    with triton(says(1), models=["qwen3_tts_custom_voice"], inputs=older) as server:
        assert doctor(server.url) == 1
    assert "seed is INT32, max_frames is missing" in capsys.readouterr().out


def test_doctor_points_to_the_log_when_speech_fails(doctor, capsys):
    with triton(refuses, models=["qwen3_tts_voice_design"]) as server:
        assert doctor(server.url) == 1
        request_id = server.calls[0].request.id
    assert f"see the server's log for request {request_id}" in capsys.readouterr().out


def test_doctor_tells_which_models_are_missing_and_why(doctor, capsys):
    facts = {"repository": ["voice_encoder", "voices"], "reasons": {"voice_encoder": "unloaded"}}
    with triton(says(1), models=["qwen3_tts_custom_voice", "create_voice"], **facts) as server:
        assert doctor(server.url) == 0
        out = capsys.readouterr().out
        assert "ok      repository: 2 of 4 models ready; missing: voice_encoder (unloaded), " in out
        assert "voices (not loaded), " in out
        assert "qwen3_tts_base (not in the repository)" in out
        server.reasons["voices"] = "Internal: no store at /nowhere"
        assert doctor(server.url) == 1
        assert "failed  repository" in capsys.readouterr().out


def test_doctor_finds_every_talker_as_this_client_knows_it(doctor, capsys):
    with triton(says(1), models=EVERY) as server:
        assert doctor(server.url) == 0
    assert "qwen3_tts_base: 20 inputs, as this client sends them" in capsys.readouterr().out


def test_an_alert_that_looks_like_firing_is_a_failure_with_what_it_means_and_what_to_do(doctor, capsys):
    with triton(says(1)) as server, metrics(FULL % 7, FULL % 80) as url:
        assert doctor(server.url, "--metrics", url) == 1
    out = capsys.readouterr().out
    assert (
        "failed  SlotsFull: 100% of qwen3_tts_base's slots are taken. "
        "A model has no free slot, and newcomers wait.\n"
        "        to fix: Has the autoscaler reached its most"
    ) in out
    assert "quiet: NobodyServes, NoAudio; nothing to tell by: NoGateway, Failures, " in out
    assert "(nobody did what it counts; --watch looks for longer)" in out


def test_counters_that_stand_still_between_two_looks_are_noticed(doctor, capsys):
    with triton(says(1)) as server, metrics(FULL % 7, FULL % 7) as url:
        assert doctor(server.url, "--metrics", url) == 1
    assert "holds 16 utterances without making a frame. An engine holds" in capsys.readouterr().out


def test_metrics_out_of_reach_are_told_and_are_no_failure(doctor, dead_url, capsys):
    with triton(says(1)) as server:
        assert doctor(server.url) == 0
    assert f"(no metrics at http://{dead_url}/metrics; --metrics names others)" in capsys.readouterr().out


def test_a_page_that_is_not_of_metrics_is_out_of_reach(doctor, capsys):
    with triton(says(1)) as server, metrics("<html>Welcome!</html>", "<html>Welcome!</html>") as url:
        assert doctor(server.url, "--metrics", url) == 0
    assert f"(no metrics at {url}; " in capsys.readouterr().out


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda alert: alert.name)
def test_each_alert_is_explained_even_when_nothing_answers(doctor, dead_url, capsys, alert):
    assert doctor(dead_url, "--timeout", "0.2", "--explain", alert.name) == 0
    said, to_do, now = capsys.readouterr().out.splitlines()
    assert said == f"alert   {alert.name}: {alert.meaning}"
    assert to_do == f"        to do: {alert.remedy}"
    assert now.startswith(
        "        now: would fire: "
        if alert.name == "NobodyServes"
        else "        now: nothing to tell it by (no "
    )


@pytest.mark.parametrize(
    ("page", "now"),
    [
        (FULL, "would fire: 100% of qwen3_tts_base's slots are taken"),
        (
            FULL.replace("} 16", "} 4", 2).replace("} 4", "} 16", 1),
            "quiet: 25% of qwen3_tts_base's slots are taken",
        ),
    ],
)
def test_an_explanation_says_how_it_is_now(doctor, capsys, page, now):
    with triton(says(1)) as server, metrics(page % 7, page % 80) as url:
        assert doctor(server.url, "--metrics", url, "--explain", "SlotsFull") == 0
    assert f"        now: {now}\n" in capsys.readouterr().out


def test_what_has_no_alert_is_not_explained(doctor, dead_url, capsys):
    with pytest.raises(SystemExit, match="2"):
        doctor(dead_url, "--explain", "Sorrow")
    assert "NobodyServes" in capsys.readouterr().err
