"""`qwen3-tts doctor`: is everything in place between this machine and a spoken sentence?"""

import platform
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from qwen3_tts_client.alerts import ALERTS, Alert
from qwen3_tts_client.client import SpeechClient
from qwen3_tts_client.errors import SpeechError
from qwen3_tts_client.metrics import Watch, Watcher
from qwen3_tts_client.models import ModelState
from qwen3_tts_client.request import inputs_of
from qwen3_tts_client.voice import MODELS, DesignedVoice, Voice

_VOICE_FOR: dict[str, Voice] = {
    "qwen3_tts_custom_voice": None,
    "qwen3_tts_voice_design": DesignedVoice("a calm, friendly voice"),
}

_ASKED = (*MODELS, "create_voice", "voices")  # whatever this client may talk to

# Triton's page, its supervisor's and a gateway's, where they stand beside Triton on their usual ports
_METRICS_PORTS = (8002, 8003, 8080)

_UNBROKEN = ("", "unloaded")  # Triton's reasons for a model that nobody asked for


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and, where that is not good enough, what would help."""

    name: str
    found: str
    remedy: str = ""

    @property
    def passed(self) -> bool:
        return not self.remedy


def usual_metrics(server: str) -> list[str]:
    """The URLs where metrics are, beside a server of this host and gRPC port."""
    host = server.rpartition(":")[0]
    return [f"http://{host}:{port}/metrics" for port in _METRICS_PORTS]


def examine(client: SpeechClient, watcher: Watcher) -> Iterator[Check]:
    """The checks in order; what cannot be examined after a failure is left out."""
    yield Check("client", f"Python {platform.python_version()}, tritonclient {version('tritonclient')}")
    answers = yield from _check_server(client)
    yield from _check_alerts(watcher.look(answers=answers))


def standing(alert: Alert, client: SpeechClient, watcher: Watcher) -> str:
    """How it is with one alert at this moment, in words."""
    watch = watcher.look(answers=_answers(client))
    values = alert.measured(watch)
    if not values:
        return f"nothing to tell it by{_silence(watch)}"
    return f"{'would fire' if alert.above(values) else 'quiet'}: {alert.told(values)}"


def _answers(client: SpeechClient) -> bool:
    try:
        client.server_info()
    except SpeechError:
        return False
    return True


def _check_server(client: SpeechClient) -> Generator[Check, None, bool]:
    """Everything that the server is asked for; whether it answers."""
    try:
        server = client.server_info()
        ready = [model for model in MODELS if client.is_ready(model)]
    except SpeechError as error:
        yield Check("server", str(error), "start it (`make serve`), or name it: --url, --api-key, --ssl")
        return False
    yield Check("server", f"{server.name} {server.version} at {client.url}")
    yield _check_models(ready)
    yield _check_repository(client)
    for model in ready:
        yield _check_inputs(client, model)
    if audible := [model for model in ready if model in _VOICE_FOR]:
        yield _check_speech(client, audible[0])
    return True


def _check_alerts(watch: Watch) -> Iterator[Check]:
    """One check for each that looks like firing, and one for all that do not."""
    measured = {alert: alert.measured(watch) for alert in ALERTS.values()}
    for alert, values in measured.items():
        if above := alert.above(values):
            yield Check(alert.name, f"{alert.told(above)}. {alert.meaning}", alert.remedy)
    quiet = [alert.name for alert, values in measured.items() if values and not alert.above(values)]
    unknown = [alert.name for alert, values in measured.items() if not values]
    found = [f"quiet: {', '.join(quiet)}"] if quiet else []
    if unknown:
        found.append(f"nothing to tell by: {', '.join(unknown)}{_silence(watch)}")
    yield Check("alerts", "; ".join(found))


def _silence(watch: Watch) -> str:
    if watch.silent:
        return f" (no metrics at {', '.join(watch.silent)}; --metrics names others)"
    return " (nobody did what it counts; --watch looks for longer)"


def _check_models(ready: list[str]) -> Check:
    if not ready:
        return Check("models", f"none of {', '.join(MODELS)} is ready", "load one, or see the server's log")
    return Check("models", ", ".join(ready))


def _check_repository(client: SpeechClient) -> Check:
    """A model that was never loaded, or was told to go, is fine; one that failed to come is not."""
    try:
        models = client.models.list()
    except SpeechError as error:  # wisely kept from most keys: who may load a model may run code
        return Check("repository", f"not for this key to see: {error}")
    away = [model for model in models if not model.is_ready]
    found = f"{len(models) - len(away)} of {len(models)} models ready"
    if missing := [*map(_absence, away), *_unknown_to(models)]:
        found += f"; missing: {', '.join(missing)}"
    failed = any(model.reason not in _UNBROKEN for model in away)
    return Check("repository", found, "see the server's log" if failed else "")


def _absence(model: ModelState) -> str:
    return f"{model.name} ({model.reason or 'not loaded'})"


def _unknown_to(models: Sequence[ModelState]) -> list[str]:
    names = {model.name for model in models}
    return [f"{name} (not in the repository)" for name in _ASKED if name not in names]


def _check_inputs(client: SpeechClient, model: str) -> Check:
    try:
        declared = client.model_inputs(model)
    except SpeechError as error:
        return Check(model, str(error), "let this key read metadata")
    unmet = {name: datatype for name, datatype in inputs_of(model).items() if declared.get(name) != datatype}
    if unmet:
        found = ", ".join(f"{name} is {declared.get(name, 'missing')}" for name in unmet)
        return Check(model, found, "install the client that belongs to this server")
    return Check(model, f"{len(declared)} inputs, as this client sends them")


def _check_speech(client: SpeechClient, model: str) -> Check:
    try:
        with client.stream("Everything is fine.", _VOICE_FOR[model], max_frames=50) as speech:
            audio = speech.read()
    except SpeechError as error:
        return Check("speech", str(error), f"see the server's log for request {error.request_id}")
    return Check("speech", f"{audio.duration_s:.2f} s, the first after {speech.time_to_first_audio_s:.3f} s")
