"""The command line as its users meet it: output, error lines and exit codes."""

import io
import json

import grpc
import pytest
import soundfile

from fakes.triton_server import MODEL_INPUTS, RefusalError, says, triton
from qwen3_tts_client.cli import main

EVERY = tuple(MODEL_INPUTS)


def refuses(call):
    raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "unknown speaker 'rian'; this model has ryan")
    yield


def test_say_writes_a_file_and_tells_how_fast_it_was(tmp_path, capsys):
    with triton(says(5)) as server:
        target = tmp_path / "morning.flac"
        assert main(["say", "Good morning.", "-o", str(target), "--url", server.url]) == 0
    assert soundfile.info(target).format == "FLAC"
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{target}: 0.40 s of audio, time to first audio 0." in err
    assert "real-time factor" in err


def test_say_without_a_target_writes_speech_wav(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with triton(says(1)) as server:
        assert main(["say", "Hi.", "--url", server.url]) == 0
    assert soundfile.info("speech.wav").duration == 0.08


def test_say_reads_stdin_and_writes_wav_to_stdout(monkeypatch, capsysbinary):
    monkeypatch.setattr("sys.stdin", io.StringIO("From a pipe."))
    with triton(says(2)) as server:
        assert main(["say", "-", "-o", "-", "--url", server.url]) == 0
        assert server.calls[0].text == "From a pipe."
    samples, sample_rate = soundfile.read(io.BytesIO(capsysbinary.readouterr().out))
    assert (len(samples), sample_rate) == (3840, 24000)


def test_say_sends_what_is_given_and_nothing_else(tmp_path):
    flags = ["--voice", "ryan", "--language", "English", "--seed", "7", "--top-k", "50", "--no-do-sample"]
    with triton(says(1)) as server:
        assert main(["say", "Hi.", "-o", str(tmp_path / "hi.wav"), "--url", server.url, *flags]) == 0
        inputs = server.calls[0].inputs
    assert inputs.keys() == {"text", "language", "speaker", "seed", "top_k", "do_sample"}
    assert inputs["do_sample"] == b"\0"


def test_every_option_of_a_model_has_a_flag(capsys):
    with pytest.raises(SystemExit):
        main(["say", "--help"])
    shown = capsys.readouterr().out
    for name in MODEL_INPUTS["qwen3_tts_custom_voice"].keys() - {
        "text",
        "speaker",
        "stream",
        "audio_encoding",
    }:
        assert f"--{name.replace('_', '-')}" in shown


def test_a_refusal_is_one_line_on_stderr(tmp_path, capsys):
    with triton(refuses) as server:
        assert main(["say", "Hi.", "-o", str(tmp_path / "x.wav"), "--url", server.url]) == 1
        request_id = server.calls[0].request.id
    assert capsys.readouterr() == (
        "",
        f"qwen3-tts: unknown speaker 'rian'; this model has ryan (request {request_id})\n",
    )


def test_a_missing_certificate_is_one_line_on_stderr(capsys):
    assert main(["say", "Hi.", "--root-certificates", "/nowhere/ca.pem"]) == 1
    assert "/nowhere/ca.pem" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "COMMAND"),
        (["say", "Hi.", "-o", "hi.xyz"], "its extension must be one of"),
        (["say", "Hi.", "-o", "hi.raw"], "its extension must be one of"),
        (["say", "Hi.", "-o", "/missing/hi.wav"], "there is no directory '/missing'"),
        (
            ["voices", "design", "a", "b", "--sample-text", "c", "-o", "/missing/hi.wav"],
            "there is no directory",
        ),
        (["bench", "--concurrency", "0"], "0 is less than 1"),
        (["voices"], "COMMAND"),
        (["voices", "save", "me", "me.wav", "--metadata", "[1]"], "'[1]' is not a JSON object"),
        (["clone", "me.wav", "Hi.", "--instruct", "whisper"], "--instruct"),
    ],
)
def test_a_wrong_command_line_exits_with_2(argv, complaint, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert complaint in capsys.readouterr().err


def test_clone_speaks_in_the_voice_of_a_recording(tmp_path, capsys):
    recording, target = tmp_path / "me.wav", tmp_path / "out.wav"
    recording.write_bytes(b"RIFF me")
    argv = ["clone", str(recording), "Hello.", "--transcript", "That was me.", "-o", str(target)]
    with triton(says(2), models=EVERY) as server:
        assert main([*argv, "--seed", "7", "--url", server.url]) == 0
        assert server.questions[0].inputs["ref_audio"][4:] == b"RIFF me"
        assert server.calls[0].inputs.keys() == {
            "text",
            "seed",
            "speaker_embedding",
            "ref_codes",
            "ref_text",
        }
    assert soundfile.info(target).duration == 0.16
    assert "0.16 s of audio" in capsys.readouterr().err


def test_clone_needs_a_transcript_or_none(tmp_path, capsys):
    recording = tmp_path / "me.wav"
    recording.write_bytes(b"RIFF me")
    argv = ["clone", str(recording), "Hello.", "-o", str(tmp_path / "out.wav")]
    with triton(says(1), models=EVERY) as server:
        assert main([*argv, "--url", server.url]) == 1
        assert "needs the transcript" in capsys.readouterr().err
        assert main([*argv, "--x-vector-only", "--url", server.url]) == 0
        assert server.calls[0].inputs.keys() == {"text", "speaker_embedding"}


def test_design_speaks_and_keeps_the_voice_when_it_is_given_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time."))
    argv = ["design", "an old storyteller", "-", "-o", str(tmp_path / "out.wav")]
    with triton(says(1), models=EVERY) as server:
        assert main([*argv, "--save", "narrator", "--url", server.url]) == 0
        assert server.calls[0].string("instruct") == "an old storyteller"
        hearing, saving = server.questions
        assert saving.string("name") == "narrator"
        assert hearing.string("ref_text") == server.calls[0].text == "Once upon a time."
        assert hearing.inputs["ref_audio"][4:] == (tmp_path / "out.wav").read_bytes()


def test_voices_are_saved_designed_listed_described_and_deleted(tmp_path, capsys):
    recording = tmp_path / "grandpa.flac"
    recording.write_bytes(b"fLaC grandpa")
    with triton(says(1), models=EVERY) as server:

        def voices(*argv):
            assert main(["voices", *argv, "--url", server.url]) == 0
            return capsys.readouterr().out

        voices("save", "grandpa", str(recording), "--transcript", "Well …", "--metadata", '{"born": 1931}')
        voices("design", "narrator", "a storyteller", "--sample-text", "Once.", "-o", str(tmp_path / "n.wav"))
        heads, *rows = voices("list").splitlines()
        assert heads.split() == ["voice", "saved", "at", "checkpoint", "transcript"]
        assert [row.split()[0] for row in rows] == ["grandpa", "narrator"]
        described = json.loads(voices("describe", "grandpa"))
        assert (described["ref_text"], described["metadata"]) == ("Well …", {"born": 1931})
        voices("delete", "grandpa")
        assert "grandpa" not in voices("list")
    assert soundfile.info(tmp_path / "n.wav").duration == 0.08


def test_voices_tell_the_speakers_and_languages_of_the_checkpoint(capsys):
    with triton(says(1), models=EVERY) as server:
        assert main(["voices", "speakers", "--url", server.url]) == 0
        assert main(["voices", "--url", server.url, "languages"]) == 0  # the flag may stand before it, too
    assert capsys.readouterr().out.splitlines() == [
        "speaker  native language  description",
        "Ryan     English          a man in a hurry",
        "Vivian   Chinese          a young woman",
        "Auto",
        "Chinese",
        "English",
    ]


def test_bench_prints_a_row_for_each_concurrency(capsys):
    with triton(says(3)) as server:
        assert main(["bench", "--concurrency", "1,3", "--requests", "4", "--url", server.url]) == 0
        assert len(server.calls) == 1 + 4 + 4
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split()[:2] == ["concurrency", "requests"]
    assert [row.split()[:2] for row in rows] == [["1", "4"], ["3", "4"]]


def test_bench_speaks_json(capsys):
    with triton(says(3)) as server:
        assert main(["bench", "--concurrency", "2", "--requests", "2", "--json", "--url", server.url]) == 0
    (load,) = json.loads(capsys.readouterr().out)
    assert (load["concurrency"], load["num_requests"]) == (2, 2)
    assert 0 < load["time_to_first_audio_p50_s"] <= load["time_to_first_audio_p95_s"]
    assert load["audio_s_per_s"] > 0


def test_bench_stops_at_the_first_failure(capsys):
    with triton(refuses) as server:
        assert main(["bench", "--url", server.url]) == 1
    assert "unknown speaker" in capsys.readouterr().err
