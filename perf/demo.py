"""One utterance per task through the real server, one through the gateway: how soon, and how fast.

    make demo            # writes out/<task>.wav and out/gateway.mp3

Starts servers of its own on free ports. Without QWEN_TTS_…_MODEL it speaks with the tiny checkpoints, whose
weights are random: they babble, at the speed of a tiny model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from qwen3_tts_client import Audio, ClonedVoice, DesignedVoice, SpeechClient, SpeechStream
from qwen3_tts_engine.launch.config import LaunchConfig, environment_with
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.server import running_server
from qwen3_tts_engine.launch.system import gateway_address, running_gateway

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "model_repository"
OUT = Path("out")
SEED = 8  # with which the tiny voices, too, speak for some seconds: a reference needs at least one
TEXT = "Good morning. The first words are on their way while the last ones are still being made."

TASKS: dict[str, Callable[[SpeechClient], SpeechStream]] = {
    "custom_voice": lambda tts: tts.stream(TEXT, voice="ryan", seed=SEED),
    "voice_design": lambda tts: tts.stream(TEXT, voice=DesignedVoice("a warm old storyteller"), seed=SEED),
    # The voice that was just designed, cloned from what it said.
    "base": lambda tts: tts.stream(TEXT, voice=ClonedVoice(OUT / "voice_design.wav", TEXT), seed=SEED),
}


@dataclass(frozen=True)
class Spoken:
    audio: Audio
    time_to_first_audio_s: float
    total_s: float

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of speech; below 1 is faster than real time."""
        return self.total_s / self.audio.duration_s


def main() -> None:
    OUT.mkdir(exist_ok=True)
    config = server_config()
    with running_server(config) as server, SpeechClient(f"127.0.0.1:{server.grpc_port}") as tts:
        for task in TASKS:
            report(task, speak(tts, task))
        with running_gateway(config, Repairs()):
            report_gateway(config)


def server_config() -> LaunchConfig:
    http_port, grpc_port, metrics_port, gateway_port = free_ports(4)
    return LaunchConfig(
        model_repository=MODELS,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        server_dir=ROOT / ".server",
        log_path=ROOT / ".server/logs/demo.log",
        environment={
            "LOG_LEVEL": "ERROR",
            **environment_with(ROOT / ".env"),
            "HOST": "127.0.0.1",
            "PORT": str(gateway_port),
        },
    )


def speak(tts: SpeechClient, task: str) -> Spoken:
    started_at = time.perf_counter()
    with TASKS[task](tts) as speech:
        chunks = list(speech)
    total_s = time.perf_counter() - started_at
    audio = Audio(np.concatenate(chunks), speech.sample_rate, speech.finish_reason, speech.num_frames)
    return Spoken(audio, speech.time_to_first_audio_s or total_s, total_s)


def report(task: str, spoken: Spoken) -> None:
    path = spoken.audio.save(OUT / f"{task}.wav")
    print(
        f"{task:13} {path}: {spoken.audio.duration_s:.1f} s of speech,"
        f" first audio after {1000 * spoken.time_to_first_audio_s:.0f} ms,"
        f" real-time factor {spoken.real_time_factor:.2f}"
    )


def report_gateway(config: LaunchConfig) -> None:
    """As an application in OpenAI's shape hears it: MP3, from the first bytes on."""
    host, port = gateway_address(config)
    body = {"model": "qwen3-tts", "input": TEXT, "voice": "alloy", "seed": SEED}
    path = OUT / "gateway.mp3"
    started_at = time.perf_counter()
    first_byte_s = None
    with (
        path.open("wb") as file,
        httpx.stream("POST", f"http://{host}:{port}/v1/audio/speech", json=body, timeout=60) as answer,
    ):
        answer.raise_for_status()
        for piece in answer.iter_raw():
            first_byte_s = first_byte_s or time.perf_counter() - started_at
            file.write(piece)
    print(
        f"{'gateway':13} {path}: {path.stat().st_size / 1e3:.0f} kB of MP3,"
        f" first bytes after {1000 * (first_byte_s or 0):.0f} ms"
    )


if __name__ == "__main__":
    main()
