"""`voices`: the voices that are saved, and those a checkpoint was born with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.config import CHECKPOINT_VARIABLES, LOADED_CHECKPOINT, own_parameters, typed
from qwen3_tts_engine.errors import ConfigError, InvalidRequest
from qwen3_tts_engine.model.checkpoint import resolve
from qwen3_tts_engine.model.config import SpeechConfig, read_speech_config
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.triton.answering import AnsweringModel, Outputs, Row, prompt_outputs, text_output
from qwen3_tts_engine.triton.loading import log_to_stderr, parameters
from qwen3_tts_engine.voices import speakers
from qwen3_tts_engine.voices.maker import identify
from qwen3_tts_engine.voices.names import check_name
from qwen3_tts_engine.voices.store import Voice, open_store
from qwen3_tts_engine.voices.voice import read_metadata

VARIABLES = {
    CHECKPOINT_VARIABLES["custom_voice"]: "checkpoint",
    CHECKPOINT_VARIABLES["base"]: "base_checkpoint",
    "VOICE_STORE": "voice_store",
}
MAX_MAKER_CHARACTERS = 512


@dataclass(frozen=True)
class VoicesConfig:
    """What an operator may set; both checkpoints are named as for the models that speak with them.

    Args:
        checkpoint: the custom_voice one, whose speakers and languages are listed.
        base_checkpoint: the base one, which makes the voices that are saved and speaks with them.
        voice_store: where they are kept, as `open_store` takes it; a relative path starts at the model's.
    """

    checkpoint: str
    base_checkpoint: str
    voice_store: str

    @classmethod
    def read(cls, given: Mapping[str, str], environment: Mapping[str, str]) -> VoicesConfig:
        """In rising rank: config.pbtxt's `parameters`, variables set and not empty, an explicit load.

        Raises:
            ConfigError: for a parameter that means nothing here, or one that is missing.
        """
        own = own_parameters(given)
        own |= {
            name: environment[variable] for variable, name in VARIABLES.items() if environment.get(variable)
        }
        if loaded := own.pop(LOADED_CHECKPOINT, None):
            own["checkpoint"] = loaded
        if missing := [name for name in VARIABLES.values() if not own.get(name)]:
            raise ConfigError(f"the parameter {missing[0]} is missing")
        return cls(**{name: typed(cls, name, text) for name, text in own.items()})


class VoicesModel(AnsweringModel):
    """Answers in JSON. No weights are read: of two checkpoints it knows config.json."""

    inputs = (
        "operation",
        "name",
        "speaker_embedding",
        "ref_codes",
        "ref_text",
        "metadata",
        "created_at",
        "model",
    )

    def initialize(self, args: dict[str, str]) -> None:
        directory = Path(args["model_repository"])
        try:
            log_to_stderr()
            config = VoicesConfig.read(parameters(json.loads(args["model_config"])), os.environ)
            _, self.born_with = _read_config(config.checkpoint, directory, "custom_voice")
            base, self.made_by = _read_config(config.base_checkpoint, directory, "base")
            self.maker = identify(base, self.made_by)
            self.store = open_store(config.voice_store, directory)
        except ConfigError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error

    def answer(self, row: Row) -> Outputs:
        operation = row.text("operation") or ""
        if operation not in OPERATIONS:
            raise InvalidRequest(
                f"operation is {operation[:80]!r}; it must be one of {', '.join(OPERATIONS)}"
            )
        return OPERATIONS[operation](self, row)

    def list(self, row: Row) -> Outputs:
        return _result({"voices": [asdict(summary) for summary in self.store.list()]})

    def describe(self, row: Row) -> Outputs:
        voice = self.store.get(_name(row))
        return {
            **_result(asdict(voice.summary)),
            **prompt_outputs(voice.prompt),
            "ref_text": text_output(voice.prompt.ref_text),
        }

    def save(self, row: Row) -> Outputs:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return self._keep(row, created_at=now, model=self.maker)

    def restore(self, row: Row) -> Outputs:
        """A voice that was saved before, from a backup: it stays as old as it is, and its maker's."""
        return self._keep(row, created_at=_read_time(row), model=_read_maker(row))

    def delete(self, row: Row) -> Outputs:
        name = check_name(_name(row))
        self.store.delete(name)
        return _result({"name": name})

    def speakers(self, row: Row) -> Outputs:
        return _result({"speakers": [asdict(one) for one in speakers.describe(self.born_with.speakers)]})

    def languages(self, row: Row) -> Outputs:
        return _result({"languages": self.born_with.languages})

    def _keep(self, row: Row, *, created_at: str, model: str) -> Outputs:
        name = check_name(_name(row), self.born_with.speakers)
        prompt = _read_prompt(row)
        self._check_size(prompt)
        metadata = read_metadata(row.text("metadata") or "{}")
        self.store.save(Voice(name, prompt, created_at=created_at, model=model, metadata=metadata))
        return _result({"name": name})

    def _check_size(self, prompt: VoicePrompt) -> None:
        """Refuse a voice that the base model beside this one can neither have made nor speak with."""
        size, expected = prompt.speaker_embedding.size, self.made_by.talker.hidden_size
        if size != expected:
            raise InvalidRequest(
                f"speaker_embedding has {size} values; voices made by {self.maker} have {expected}:"
                " this one was made by a model of another size"
            )


# The value of `operation` -> what it does.
OPERATIONS: Mapping[str, Callable[[VoicesModel, Row], Outputs]] = {
    "list": VoicesModel.list,
    "describe": VoicesModel.describe,
    "save": VoicesModel.save,
    "restore": VoicesModel.restore,
    "delete": VoicesModel.delete,
    "speakers": VoicesModel.speakers,
    "languages": VoicesModel.languages,
}


def _read_config(checkpoint: str, base: Path, task: str) -> tuple[Path, SpeechConfig]:
    directory = resolve(checkpoint, base)
    try:
        config = read_speech_config(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{directory} has no readable config.json: {error}") from error
    if config.tts_model_type != task:
        raise ConfigError(f"{directory} is a {config.tts_model_type} checkpoint; this needs {task}")
    return directory, config


def _name(row: Row) -> str:
    name = row.text("name")
    if name is None:
        raise InvalidRequest("name is missing; say which voice")
    return name


def _read_time(row: Row) -> str:
    created_at = row.text("created_at") or ""
    try:
        aware = datetime.fromisoformat(created_at).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise InvalidRequest(
            f"created_at is {created_at[:80]!r}; it must be a time with its zone, as describe gives it"
        )
    return created_at


def _read_maker(row: Row) -> str:
    model = row.text("model") or ""
    if not 1 <= len(model) <= MAX_MAKER_CHARACTERS:
        raise InvalidRequest(
            f"model has {len(model)} characters; as describe gives it, it has 1 to {MAX_MAKER_CHARACTERS}"
        )
    return model


def _read_prompt(row: Row) -> VoicePrompt:
    embedding, codes = row.tensor("speaker_embedding"), row.tensor("ref_codes")
    if embedding is None:
        raise InvalidRequest("speaker_embedding is missing; every voice has one")
    if codes is None:
        return VoicePrompt(embedding)
    return VoicePrompt(embedding, codes.astype(np.int64), row.text("ref_text") or "")


def _result(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"result": text_output(json.dumps(answer, ensure_ascii=False))}
