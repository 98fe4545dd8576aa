"""Models come and go while the server runs: load, unload, swap a checkpoint.

Triton must run with `--model-control-mode=explicit`, as `make serve` has it.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToJson  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from qwen3_tts_client.conversation import Conversation, Pause, Question
from qwen3_tts_client.errors import EngineFailed, InvalidRequest, KeyRefused, ServerUnavailable, is_unserved

if TYPE_CHECKING:
    from qwen3_tts_client.aio import AsyncSpeechClient
    from qwen3_tts_client.client import SpeechClient
    from qwen3_tts_client.finding import VoiceFinder

PATIENCE_S = 600.0
"""For loading, which may download weights, and for unloading, which lets the last utterance end."""

_POLL_S = 0.05

# A parameter of the models that outranks the server's environment, which `checkpoint` does not.
_LOADED_CHECKPOINT = "loaded_checkpoint"


@dataclass(frozen=True)
class ModelState:
    """A model of the server's repository.

    Attributes:
        name: as in the repository.
        version: which one is, or was, loaded; empty if none ever was.
        state: `READY`, `LOADING`, `UNLOADING` (until the last utterance has ended) or `UNAVAILABLE`.
        reason: why it is unavailable, in Triton's words; empty if it was never loaded.
    """

    name: str
    version: str
    state: str
    reason: str

    @property
    def is_ready(self) -> bool:
        return self.state == "READY"


def listing() -> Conversation[list[ModelState]]:
    index = yield Question("RepositoryIndex", service_pb2.RepositoryIndexRequest())
    return [
        ModelState(model.name, model.version, model.state or "UNAVAILABLE", model.reason)
        for model in index.models
    ]


def asking_ready(name: str) -> Conversation[bool]:
    answer = yield Question("ModelReady", service_pb2.ModelReadyRequest(name=name))
    return bool(answer.ready)


def asking_checkpoint(name: str, timeout_s: float | None = None) -> Conversation[str]:
    """The checkpoint in a model's configuration; empty if the model is not loaded, or only others may ask."""
    try:
        answer = yield Question("ModelConfig", service_pb2.ModelConfigRequest(name=name), timeout_s)
    except (KeyRefused, ServerUnavailable) as error:
        if isinstance(error, KeyRefused) or is_unserved(error):
            return ""
        raise
    parameters = answer.config.parameters
    return parameters[_LOADED_CHECKPOINT].string_value or parameters["checkpoint"].string_value or ""


def loading(
    finder: VoiceFinder, name: str, checkpoint: str | None, timeout_s: float
) -> Conversation[ModelState]:
    """Unload, wait, load: left to itself, Triton would build the new one while it still holds the old."""
    try:
        config = None if checkpoint is None else (yield from _configuring(name, checkpoint, timeout_s))
        yield from unloading(finder, name, timeout_s)
        return (yield from _starting(name, config, timeout_s))
    finally:
        finder.forget()


def ensuring(finder: VoiceFinder, name: str, timeout_s: float) -> Conversation[ModelState]:
    """Load what is not loaded; whoever is loading or unloading it is let finish first."""
    model = yield from _waiting(name, ("READY", "UNAVAILABLE"), timeout_s)
    if model.is_ready:
        return model
    try:
        return (yield from _starting(name, None, timeout_s))
    finally:
        finder.forget()


def unloading(finder: VoiceFinder, name: str, timeout_s: float) -> Conversation[None]:
    try:
        if (yield from _finding(name)).state != "UNAVAILABLE":
            yield Question("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=name))
            yield from _waiting(name, ("UNAVAILABLE",), timeout_s)
    finally:
        finder.forget()


class Models:
    """The server's models, as `SpeechClient.models`.

    tts.models.load("qwen3_tts_base", checkpoint="Qwen/Qwen3-TTS-12Hz-0.6B-Base")
    """

    def __init__(self, client: SpeechClient) -> None:
        self._client = client

    def list(self) -> builtins.list[ModelState]:
        """All models of the repository, loaded or not."""
        return self._client._talk(listing())

    def ready(self, name: str) -> bool:
        """Whether the server answers for this model."""
        return self._client._talk(asking_ready(name))

    def load(self, name: str, checkpoint: str | None = None, *, timeout_s: float = PATIENCE_S) -> ModelState:
        """Load a model and wait until it is ready; one that is loaded is unloaded first, never held twice.

        While it is away its requests are refused; the other models go on. If it cannot be loaded it stays
        away: load it without a checkpoint to go back to the one that is configured.

        Args:
            name: as in the repository.
            checkpoint: weights to load in place of the configured ones, whether `config.pbtxt` names those or
                a QWEN_TTS_…_MODEL in the server's environment: a Hugging Face hub id, or a directory there.
                Recordings for another `qwen3_tts_base` are to be heard by a `voice_encoder` with the same
                checkpoint.
                Triton wants a configuration whole, and tells it only of a model that is loaded; one that is
                not is loaded as configured first.
            timeout_s: longest wait for the old one to go, and again for the new one to come.

        Raises:
            InvalidRequest: no such model, or none that has a checkpoint.
            EngineFailed: it could not be loaded; the message is Triton's.
            ServerUnavailable: it took longer than `timeout_s`.
        """
        return self._client._talk(loading(self._client._finder, name, checkpoint, timeout_s))

    def ensure_loaded(self, name: str, *, timeout_s: float = PATIENCE_S) -> ModelState:
        """Load a model unless it is loaded, with whatever checkpoint; whoever is loading it is waited for.

        Args:
            name: as in the repository.
            timeout_s: longest wait for others to finish, and again for this load.

        Raises:
            InvalidRequest: no such model.
            EngineFailed: it could not be loaded; the message is Triton's.
            ServerUnavailable: it took longer than `timeout_s`.
        """
        return self._client._talk(ensuring(self._client._finder, name, timeout_s))

    def unload(self, name: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Unload a model and wait until its last utterance has ended and its memory is free.

        Raises:
            InvalidRequest: no such model.
            ServerUnavailable: it took longer than `timeout_s`.
        """
        self._client._talk(unloading(self._client._finder, name, timeout_s))


class AsyncModels:
    """`Models`, awaited, as `AsyncSpeechClient.models`."""

    def __init__(self, client: AsyncSpeechClient) -> None:
        self._client = client

    async def list(self) -> builtins.list[ModelState]:
        """As `Models.list`."""
        return await self._client._talk(listing())

    async def ready(self, name: str) -> bool:
        """As `Models.ready`."""
        return await self._client._talk(asking_ready(name))

    async def load(
        self, name: str, checkpoint: str | None = None, *, timeout_s: float = PATIENCE_S
    ) -> ModelState:
        """As `Models.load`."""
        return await self._client._talk(loading(self._client._finder, name, checkpoint, timeout_s))

    async def ensure_loaded(self, name: str, *, timeout_s: float = PATIENCE_S) -> ModelState:
        """As `Models.ensure_loaded`."""
        return await self._client._talk(ensuring(self._client._finder, name, timeout_s))

    async def unload(self, name: str, *, timeout_s: float = PATIENCE_S) -> None:
        """As `Models.unload`."""
        await self._client._talk(unloading(self._client._finder, name, timeout_s))


def _finding(name: str) -> Conversation[ModelState]:
    """A model's state: of its versions, one that is not yet or no longer unavailable speaks for all."""
    models = yield from listing()
    versions = [model for model in models if model.name == name]
    if not versions:
        known = ", ".join(dict.fromkeys(model.name for model in models))
        raise InvalidRequest(f"the repository has no model {name!r}; it has {known or 'none'}")
    return next((version for version in versions if version.state != "UNAVAILABLE"), versions[0])


def _waiting(name: str, states: Collection[str], timeout_s: float) -> Conversation[ModelState]:
    give_up_at_s = time.monotonic() + timeout_s
    while (model := (yield from _finding(name))).state not in states:
        if time.monotonic() > give_up_at_s:
            raise ServerUnavailable(f"{name} is still {model.state} after {timeout_s:g} s")
        yield Pause(_POLL_S)
    return model


def _starting(name: str, config: str | None, timeout_s: float) -> Conversation[ModelState]:
    request = service_pb2.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        request.parameters["config"].string_param = config
    yield Question("RepositoryModelLoad", request, timeout_s)
    model = yield from _waiting(name, ("READY", "UNAVAILABLE"), timeout_s)
    if not model.is_ready:
        raise EngineFailed(f"{name} did not load: {model.reason}")
    return model


def _configuring(name: str, checkpoint: str, timeout_s: float) -> Conversation[str]:
    """The model's whole configuration, as JSON, with another checkpoint in it."""
    if not (yield from _finding(name)).is_ready:
        yield from _starting(name, None, timeout_s)
    answer = yield Question("ModelConfig", service_pb2.ModelConfigRequest(name=name))
    if "checkpoint" not in answer.config.parameters:
        raise InvalidRequest(f"{name} has no checkpoint to swap")
    answer.config.parameters[_LOADED_CHECKPOINT].string_value = checkpoint
    return str(MessageToJson(answer.config, preserving_proto_field_name=True))
