"""The knobs of a model; in rising rank: config.pbtxt's `parameters`, the environment, an explicit load."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.profile import PROFILES

if TYPE_CHECKING:
    from typing_extensions import Self

CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "codec_dtype": ("float32", "bfloat16"),
    "weights": ("full", "int8"),
    "profile": tuple(PROFILES),
}
SWITCHES = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
LEAST = {"slots": 1, "waiting_room": 0, "max_frames": 1, "max_text_tokens": 8, "memory_budget_mb": 1}

# Which variable names a task's checkpoint; the rest is the same for all.
CHECKPOINT_VARIABLES = {
    "custom_voice": "QWEN_TTS_CUSTOM_VOICE_MODEL",
    "voice_design": "QWEN_TTS_VOICE_DESIGN_MODEL",
    "base": "QWEN_TTS_BASE_MODEL",
}
VARIABLES = {
    "QWEN_TTS_TOKENIZER": "speech_tokenizer",
    "CUDA_DEVICE": "device",
    "MODEL_DTYPE": "dtype",
    "CODEC_DTYPE": "codec_dtype",
    "MODEL_WEIGHTS": "weights",
    "USE_FLASH_ATTENTION": "flash_attention",
    "MODEL_PROFILE": "profile",
    "VOICE_STORE": "voice_store",
}

# The parameter that an operator's explicit load sends, and no file has. It is one of its own because a model
# sees file and load in one configuration, and of `checkpoint` cannot tell who wrote it.
LOADED_CHECKPOINT = "loaded_checkpoint"


@dataclass(frozen=True)
class CheckpointConfig:
    """What an operator may set of a model that has weights.

    Args:
        checkpoint: a directory, relative to the model's own in the repository, or a hub id.
        speech_tokenizer: replaces the checkpoint's `speech_tokenizer/`; empty: its own.
        device: `auto` takes the one Triton gives the instance, else e.g. `cuda:1` or `cpu`.
    """

    checkpoint: str = ""
    speech_tokenizer: str = ""
    device: str = "auto"

    @classmethod
    def read(cls, parameters: Mapping[str, str], environment: Mapping[str, str], task: str) -> Self:
        """Read everything an operator may have set, the highest rank last: file, environment, explicit load.

        Raises:
            ConfigError: for a name or a value that means nothing here.
        """
        in_file = {name: text for name, text in parameters.items() if name != LOADED_CHECKPOINT}
        config = cls.from_parameters(in_file).overridden_by(environment, task)
        loaded = parameters.get(LOADED_CHECKPOINT)
        return replace(config, checkpoint=loaded) if loaded else config

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """Read config.pbtxt's `parameters`; those in capitals are Triton's own.

        Raises:
            ConfigError: for a name or a value that means nothing here.
        """
        return cls(**{name: typed(cls, name, text) for name, text in own_parameters(parameters).items()})

    def overridden_by(self, environment: Mapping[str, str], task: str) -> Self:
        """The same with every variable that is set and not empty taking its parameter's place."""
        variables = VARIABLES | {CHECKPOINT_VARIABLES[task]: "checkpoint"}
        known = {variable: name for variable, name in variables.items() if hasattr(self, name)}
        given = {name: environment[variable] for variable, name in known.items() if environment.get(variable)}
        return replace(self, **{name: typed(type(self), name, text) for name, text in given.items()})


@dataclass(frozen=True)
class EngineConfig(CheckpointConfig):
    """What an operator may set of a model that speaks, beyond `CheckpointConfig`.

    Args:
        dtype: of the language models; `auto` is bfloat16 on a GPU and on a processor that is faster with it,
            else float32.
        codec_dtype: of the codec decoder. bfloat16 halves its time where the processor has it; float32 is
            upstream's audio to the last bit but rounding.
        weights: `int8` stores those of the language models' layers in 8 bits, for speed on a CPU; what is
            spoken is then no longer upstream's.
        flash_attention: use flash-attn where it is installed and the device has it.
        slots: utterances spoken at once; None, in text `auto`, for as many as `memory_budget_mb` holds.
        memory_budget_mb: what those slots may take, in millions of bytes; None, in text `auto`, for a quarter
            of what is free when the model loads.
        waiting_room: utterances admitted beyond the slots, to start the moment one is free.
        max_frames: the longest utterance anyone may ask for; one frame is 80 ms.
        max_text_tokens: the longest text, and the longest instruction.
        profile: what the scheduling is for: `latency`, `balanced` or `throughput`.
    """

    dtype: str = "auto"
    codec_dtype: str = "float32"
    weights: str = "full"
    flash_attention: bool = False
    slots: int | None = 16
    memory_budget_mb: int | None = None
    waiting_room: int = 2
    max_frames: int = 8191
    max_text_tokens: int = 4096
    profile: str = "balanced"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}"
                )
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class BaseConfig(EngineConfig):
    """What an operator may set of the base model, beyond `EngineConfig`.

    Args:
        voice_store: where saved voices are, as `open_store` takes it; the `voices` model saves them there.
    """

    voice_store: str = "../../saved_voices"


def own_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Without those in capitals, which are Triton's own."""
    return {name: text for name, text in parameters.items() if not name.isupper()}


def typed(cls: type[Any], name: str, text: str) -> Any:
    """A parameter's text as the type its field has.

    Raises:
        ConfigError: for a name no field has, with the closest one, or a text that is no such value.
    """
    kinds = {f.name: str(f.type) for f in fields(cls)}
    if name not in kinds:
        closest = difflib.get_close_matches(name, kinds, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else f"; known are {', '.join(kinds)}"
        raise ConfigError(f"unknown parameter {name!r}{hint}")
    text = text.strip()
    return _READERS[kinds[name]](name, text.lower() if name in CHOICES else text)


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; it must be a whole number") from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; it must be a number") from None


def _integer_or_auto(name: str, text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; it must be a whole number or auto") from None


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in SWITCHES:
        raise ConfigError(f"{name} is {text!r}; it must be true or false")
    return SWITCHES[text.lower()]


_READERS = {
    "int": _integer,
    "int | None": _integer_or_auto,
    "float": _number,
    "bool": _boolean,
    "str": lambda name, text: text,
}
