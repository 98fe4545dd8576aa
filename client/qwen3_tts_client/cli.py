"""The command line `qwen3-tts`: say, clone, design, voices, bench, doctor."""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen3_tts_client.alerts import ALERTS, Alert
from qwen3_tts_client.audio import Audio, file_format
from qwen3_tts_client.bench import Load, measure
from qwen3_tts_client.client import SpeechClient
from qwen3_tts_client.doctor import examine, standing, usual_metrics
from qwen3_tts_client.errors import SpeechError
from qwen3_tts_client.metrics import Watcher
from qwen3_tts_client.request import INPUTS
from qwen3_tts_client.voice import ClonedVoice, DesignedVoice, Voice
from qwen3_tts_client.voices import SavedVoice, in_designed_voice

# option -> help; the flag's type is that of its tensor
_OPTIONS = {
    "seed": "the same seed and request give the same audio",
    "do_sample": "sample, rather than take the likeliest code",
    "temperature": "of the talker",
    "top_k": "of the talker",
    "top_p": "of the talker",
    "repetition_penalty": "of the talker",
    "subtalker_do_sample": "as --do-sample, for the code predictor",
    "subtalker_temperature": "of the code predictor",
    "subtalker_top_k": "of the code predictor",
    "subtalker_top_p": "of the code predictor",
    "max_frames": "longest utterance, in frames of 80 ms",
    "non_streaming_mode": "put the whole text in the prompt before the first frame",
}

_FLAG_TYPES: dict[str, dict[str, Any]] = {
    "BYTES": {"metavar": "TEXT"},
    "BOOL": {"action": argparse.BooleanOptionalAction},
    "INT32": {"type": int, "metavar": "N"},
    "INT64": {"type": int, "metavar": "N"},
    "FP32": {"type": float, "metavar": "X"},
}

_BENCH_TEXT = "The quick brown fox jumps over the lazy dog, and nobody in the village is surprised."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 an error told in one line on stderr, 2 a wrong command line."""
    args = _parser().parse_args(argv)
    try:
        with _connect(args) as client:
            return int(args.command(client, args) or 0)
    except KeyboardInterrupt:
        return 130
    except SpeechError as error:
        about = f" (request {error.request_id})" if error.request_id else ""
        print(f"qwen3-tts: {error}{about}", file=sys.stderr)
    except OSError as error:
        print(f"qwen3-tts: {error}", file=sys.stderr)
    return 1


def say(client: SpeechClient, args: argparse.Namespace) -> None:
    _speak(client, _text(args), args.voice, args)


def clone(client: SpeechClient, args: argparse.Namespace) -> None:
    _speak(client, _text(args), _recorded(args), args)


def design(client: SpeechClient, args: argparse.Namespace) -> None:
    text = _text(args)
    audio = _speak(client, text, DesignedVoice(args.description), args)
    if args.save is not None:
        client.voices.save(args.save, in_designed_voice(audio, text))


def list_voices(client: SpeechClient, args: argparse.Namespace) -> None:
    rows = [_voice_row(voice) for voice in client.voices.list()]
    print(_table(("voice", "saved at", "checkpoint", "transcript"), rows, str.ljust))


def describe_voice(client: SpeechClient, args: argparse.Namespace) -> None:
    print(json.dumps(asdict(client.voices.describe(args.name)), indent=2, ensure_ascii=False))


def save_voice(client: SpeechClient, args: argparse.Namespace) -> None:
    client.voices.save(args.name, _recorded(args), metadata=args.metadata)


def delete_voice(client: SpeechClient, args: argparse.Namespace) -> None:
    client.voices.delete(args.name)


def export_voices(client: SpeechClient, args: argparse.Namespace) -> None:
    names = client.voices.export_to(args.file, args.names)
    print(f"{args.file}: {_told(names)}", file=sys.stderr)


def import_voices(client: SpeechClient, args: argparse.Namespace) -> None:
    print(f"imported {_told(client.voices.import_from(args.file, replace=args.replace))}", file=sys.stderr)


def design_voice(client: SpeechClient, args: argparse.Namespace) -> None:
    sample = client.voices.design(
        args.name,
        instruct=args.description,
        sample_text=args.sample_text,
        language=args.language,
        metadata=args.metadata,
        seed=args.seed,
    )
    if args.output is not None:
        _write(sample, args.output)


def list_speakers(client: SpeechClient, args: argparse.Namespace) -> None:
    speakers = client.voices.speakers()
    rows = [(speaker.name, speaker.native_language, speaker.description) for speaker in speakers]
    print(_table(("speaker", "native language", "description"), rows, str.ljust))


def list_languages(client: SpeechClient, args: argparse.Namespace) -> None:
    print("\n".join(client.voices.languages()))


def bench(client: SpeechClient, args: argparse.Namespace) -> None:
    client.synthesize(args.text, args.voice, language=args.language, **_options(args))  # warms up, unmeasured
    loads = []
    for concurrency in args.concurrency:
        if sys.stderr.isatty():
            print(f"{args.requests} requests, {concurrency} at a time …", file=sys.stderr)
        loads.append(
            measure(
                client,
                args.text,
                args.voice,
                language=args.language,
                concurrency=concurrency,
                num_requests=args.requests,
                options=_options(args),
            )
        )
    print(json.dumps([asdict(load) for load in loads], indent=2) if args.json else _load_table(loads))


def doctor(client: SpeechClient, args: argparse.Namespace) -> int:
    watcher = Watcher(args.metrics or usual_metrics(client.url), args.watch_s)
    if args.explain is not None:
        return _explain(ALERTS[args.explain], client, watcher)
    failed = False
    for check in examine(client, watcher):
        failed = failed or not check.passed
        print(_wrapped(f"{'ok' if check.passed else 'failed':<7} {check.name}: {check.found}"))
        if check.remedy:
            print(_wrapped(f"        to fix: {check.remedy}"))
    return 1 if failed else 0


def _explain(alert: Alert, client: SpeechClient, watcher: Watcher) -> int:
    print(_wrapped(f"alert   {alert.name}: {alert.meaning}"))
    print(_wrapped(f"        to do: {alert.remedy}"), flush=True)
    print(_wrapped(f"        now: {standing(alert, client, watcher)}"))
    return 0


def _wrapped(text: str) -> str:
    width = shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else sys.maxsize
    return textwrap.fill(text, max(width, 40), subsequent_indent=" " * 8, break_on_hyphens=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen3-tts", description="Speak with Qwen3-TTS on NVIDIA Triton.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    server, voice, speech = _server_flags(), _voice_flags(), _speech_flags()
    output = _output_flags()

    command = commands.add_parser(
        "say", parents=[server, voice, speech, output], help="speak a text into a file"
    )
    _add_text(command)
    command.set_defaults(command=say)

    command = commands.add_parser(
        "clone", parents=[server, speech, output], help="speak a text in the voice of a recording"
    )
    _add_recording(command)
    _add_text(command)
    command.set_defaults(command=clone)

    command = commands.add_parser(
        "design", parents=[server, speech, output], help="speak a text in a voice described in words"
    )
    command.add_argument("description", help="the voice, such as 'a warm old storyteller'")
    _add_text(command)
    command.add_argument("--save", metavar="NAME", help="keep the voice, as it sounds here, under this name")
    command.set_defaults(command=design)

    command = commands.add_parser("voices", parents=[server], help="the voices to speak with by name")
    _add_voices_commands(command.add_subparsers(required=True, metavar="COMMAND"), server)

    command = commands.add_parser(
        "bench", parents=[server, voice, speech], help="measure latency and throughput"
    )
    command.add_argument("text", nargs="?", default=_BENCH_TEXT, help="what to say (default: %(default)s)")
    command.add_argument(
        "--concurrency",
        type=_counts,
        default=[1, 2, 4],
        metavar="N,N",
        help="callers at once (default: 1,2,4)",
    )
    command.add_argument(
        "--requests", type=_count, default=16, metavar="N", help="for each concurrency (default: %(default)s)"
    )
    command.add_argument("--json", action="store_true", help="print JSON in place of the table")
    command.set_defaults(command=bench)

    command = commands.add_parser(
        "doctor", parents=[server], help="check client, server, models, speech and what alerts look at"
    )
    command.add_argument(
        "--explain",
        choices=ALERTS,
        metavar="ALERT",
        help=f"what one alert means, what to do, and how it is now: {', '.join(ALERTS)}",
    )
    command.add_argument(
        "--metrics",
        action="append",
        metavar="URL",
        help="a page of metrics; may be repeated (default: ports 8002, 8003 and 8080 of the host)",
    )
    command.add_argument(
        "--watch",
        type=_seconds,
        default=10.0,
        metavar="S",
        dest="watch_s",
        help="how long to watch them for what alerts look at (default: %(default)g)",
    )
    command.set_defaults(command=doctor)
    return parser


def _add_voices_commands(commands: Any, server: argparse.ArgumentParser) -> None:
    command = commands.add_parser("list", parents=[server], help="the saved voices")
    command.set_defaults(command=list_voices)

    command = commands.add_parser("describe", parents=[server], help="all about a saved voice, as JSON")
    command.add_argument("name")
    command.set_defaults(command=describe_voice)

    command = commands.add_parser("save", parents=[server], help="keep the voice of a recording")
    command.add_argument("name")
    _add_recording(command)
    _add_metadata(command)
    command.set_defaults(command=save_voice)

    command = commands.add_parser("delete", parents=[server], help="forget a saved voice")
    command.add_argument("name")
    command.set_defaults(command=delete_voice)

    command = commands.add_parser("design", parents=[server], help="keep a voice described in words")
    command.add_argument("name")
    command.add_argument("description", help="the voice, such as 'a warm old storyteller'")
    command.add_argument("--sample-text", required=True, metavar="TEXT", help="what it says, for 1 to 30 s")
    command.add_argument("--language", help="of the sample; by default recognised from it")
    command.add_argument("--seed", type=int, metavar="N", help="the same seed and words give the same voice")
    command.add_argument("-o", "--output", type=_output, metavar="FILE|-", help="write the sample, too")
    _add_metadata(command)
    command.set_defaults(command=design_voice)

    command = commands.add_parser("export", parents=[server], help="write saved voices to one file")
    command.add_argument("file", metavar="FILE", help="what `import` reads; replaced if it is there")
    command.add_argument("names", metavar="NAME", nargs="*", help="which voices (default: all)")
    command.set_defaults(command=export_voices)

    command = commands.add_parser("import", parents=[server], help="save the voices of such a file")
    command.add_argument("file", metavar="FILE", help="written by `export`")
    command.add_argument("--replace", action="store_true", help="in place of saved voices of their names")
    command.set_defaults(command=import_voices)

    command = commands.add_parser("speakers", parents=[server], help="the built-in speakers")
    command.set_defaults(command=list_speakers)

    command = commands.add_parser("languages", parents=[server], help="the languages they speak")
    command.set_defaults(command=list_languages)


def _server_flags() -> argparse.ArgumentParser:
    """`SpeechClient`'s arguments, under their names and with its defaults: only what is given is there."""
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = flags.add_argument_group("server")
    group.add_argument("--url", help="gRPC host:port (default: localhost:8001)")
    group.add_argument(
        "--timeout", type=float, metavar="S", dest="timeout_s", help="longest wait for a chunk (default: 30)"
    )
    group.add_argument("--api-key", metavar="KEY", help="key of Triton's restricted APIs (TRITON_API_KEY)")
    group.add_argument("--ssl", action="store_true", help="use TLS; implied by the files below")
    group.add_argument("--root-certificates", metavar="PEM", help="whom to trust")
    group.add_argument("--private-key", metavar="PEM", help="this client's key, for mutual TLS")
    group.add_argument("--certificate-chain", metavar="PEM", help="this client's certificate")
    return flags


_SERVER_ARGUMENTS = (
    "url",
    "timeout_s",
    "api_key",
    "ssl",
    "root_certificates",
    "private_key",
    "certificate_chain",
)


def _voice_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("voice")
    group.add_argument(
        "--voice",
        metavar="NAME",
        help="a built-in speaker, a saved voice, or a mix of saved ones: 'a(2)+b(1)'",
    )
    group.add_argument("--instruct", metavar="TEXT", help="style in words, such as 'whisper, in a hurry'")
    return flags


def _speech_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    group = flags.add_argument_group("speech (what is left out, the server decides)")
    group.add_argument("--language", help="such as English; by default recognised from the text")
    for name, meaning in _OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, default=None, help=meaning, **_FLAG_TYPES[INPUTS[name]])
    return flags


def _output_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "-o",
        "--output",
        type=_output,
        default="speech.wav",
        metavar="FILE|-",
        help="audio file, its format by extension; - writes WAV to standard output (default: %(default)s)",
    )
    return flags


def _add_text(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", metavar="TEXT|-", help="what to say; - reads standard input")


def _add_recording(command: argparse.ArgumentParser) -> None:
    command.add_argument("recording", help="audio file of 1 to 30 s: somebody speaking")
    command.add_argument("--transcript", metavar="TEXT", help="what is said in the recording")
    command.add_argument("--x-vector-only", action="store_true", help="no transcript, and less of a likeness")


def _add_metadata(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metadata", type=_metadata, metavar="JSON", help="an object to keep with the voice"
    )


def _connect(args: argparse.Namespace) -> SpeechClient:
    key = {"api_key": key} if (key := os.environ.get("TRITON_API_KEY")) else {}
    return SpeechClient(**key | _given(args, _SERVER_ARGUMENTS))


def _options(args: argparse.Namespace) -> Any:
    return _given(args, ("instruct", *_OPTIONS))


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if name in args}


def _text(args: argparse.Namespace) -> str:
    return sys.stdin.read() if args.text == "-" else str(args.text)


def _recorded(args: argparse.Namespace) -> ClonedVoice:
    return ClonedVoice(args.recording, args.transcript, args.x_vector_only)


def _speak(client: SpeechClient, text: str, voice: Voice, args: argparse.Namespace) -> Audio:
    began_s = time.perf_counter()
    with client.stream(text, voice, language=args.language, **_options(args)) as speech:
        audio = speech.read(_progress())
    wall_s = time.perf_counter() - began_s
    _write(audio, args.output)
    print(
        f"{'WAV on stdout' if args.output == '-' else args.output}: {audio.duration_s:.2f} s of audio, "
        f"time to first audio {speech.time_to_first_audio_s or 0:.3f} s, "
        f"real-time factor {wall_s / (audio.duration_s or 1):.3f}",
        file=sys.stderr,
    )
    return audio


def _write(audio: Audio, output: str) -> None:
    if output == "-":
        sys.stdout.buffer.write(audio.to_wav())
    else:
        audio.save(output)


def _output(path: str) -> str:
    """What cannot be written is refused before anything is spoken."""
    if path == "-":
        return path
    try:
        file_format(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path!r} is a directory")
    if not (folder := Path(path).parent).is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {path!r}: there is no directory {str(folder)!r}")
    return path


def _metadata(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object") from None


def _count(number: str) -> int:
    count = int(number)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return count


def _seconds(number: str) -> float:
    seconds = float(number)
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{number} is not within 0 and 3600")
    return seconds


def _counts(numbers: str) -> list[int]:
    return [_count(number) for number in numbers.split(",")]


def _progress() -> Callable[[float], None] | None:
    """Seconds of audio so far, on one line of a terminal; nothing where nobody watches."""
    if not sys.stderr.isatty():
        return None
    return lambda received_s: print(f"\r{received_s:7.2f} s ", end="", file=sys.stderr, flush=True)


def _told(names: Sequence[str]) -> str:
    return f"{len(names)} {'voice' if len(names) == 1 else 'voices'}"


def _voice_row(voice: SavedVoice) -> tuple[str, ...]:
    return (
        voice.name,
        voice.created_at,
        voice.model,
        "none: x-vector only" if voice.x_vector_only else voice.ref_text,
    )


def _load_table(loads: list[Load]) -> str:
    heads = ("concurrency", "requests", "first audio p50", "p95", "RTF p50", "p95", "audio s/s")
    rows = [
        (
            f"{load.concurrency}",
            f"{load.num_requests}",
            f"{load.time_to_first_audio_p50_s * 1000:.0f} ms",
            f"{load.time_to_first_audio_p95_s * 1000:.0f} ms",
            f"{load.real_time_factor_p50:.3f}",
            f"{load.real_time_factor_p95:.3f}",
            f"{load.audio_s_per_s:.2f}",
        )
        for load in loads
    ]
    return _table(heads, rows, str.rjust)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], justify: Callable[[str, int], str]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(justify(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    )
