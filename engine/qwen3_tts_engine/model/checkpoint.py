"""A Qwen3-TTS checkpoint on disk: its configuration, its sampling defaults and its tensors.

The published layout:

    config.json  generation_config.json  model.safetensors  vocab.json  merges.txt  tokenizer_config.json
    speech_tokenizer/{config.json, model.safetensors, preprocessor_config.json}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.config import CodecConfig, SpeechConfig, read_codec_config, read_speech_config
from qwen3_tts_engine.request import GenerationDefaults, Sampling


class Weights:
    """The tensors below one prefix of a checkpoint, each taken once, so that none is forgotten.

    Args:
        tensors: name to loader, the prefix already removed.
        dtype, device: what every taken tensor is converted to.
        int8_layers: whether the products of decoder layers are to be made in int8.
    """

    def __init__(
        self,
        tensors: Mapping[str, Callable[[], torch.Tensor]],
        dtype: torch.dtype,
        device: torch.device,
        int8_layers: bool = False,
    ) -> None:
        self._tensors = dict(tensors)
        self.dtype = dtype
        self.device = device
        self.int8_layers = int8_layers
        self._parts: list[Weights] = []

    def take(self, name: str) -> torch.Tensor:
        """The tensor of that name, contiguous, on the device.

        Raises:
            ConfigError: when the checkpoint does not hold it.
        """
        load = self._tensors.pop(name, None)
        if load is None:
            raise ConfigError(f"the checkpoint has no tensor {name!r}")
        return load().to(self.device, self.dtype).contiguous()

    def has(self, name: str) -> bool:
        return name in self._tensors

    def ignore(self, name: str) -> None:
        """Leave out a tensor that speaking does not need."""
        self._tensors.pop(name, None)

    def below(self, prefix: str) -> Weights:
        """Hand the tensors whose names start with `prefix` over to a module that will take them all."""
        names = [name for name in self._tensors if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): self._tensors.pop(name) for name in names}
        self._parts.append(Weights(tensors, self.dtype, self.device, self.int8_layers))
        return self._parts[-1]

    def expect_taken(self) -> None:
        """Refuse a checkpoint that holds more than the model has a place for."""
        if self._tensors:
            raise ConfigError(
                f"the checkpoint has unexpected tensors: {', '.join(sorted(self._tensors)[:5])}"
            )
        for part in self._parts:
            part.expect_taken()


class Checkpoint:
    """One directory in the published layout.

    Args:
        path: a directory, as `resolve` returns it.
        speech_tokenizer: replaces the directory's own `speech_tokenizer/`; must have the same dimensions.
    """

    def __init__(self, path: Path, speech_tokenizer: Path | None = None) -> None:
        self.path = path
        self.config: SpeechConfig = read_speech_config(_read_json(path / "config.json"))
        self.codec_config: CodecConfig = _codec_config(path / "speech_tokenizer", speech_tokenizer)
        self.speech_tokenizer = speech_tokenizer or path / "speech_tokenizer"

    def expect_task(self, task: str) -> None:
        """Refuse a checkpoint of another kind by name, before its weights are read."""
        if self.config.tts_model_type != task:
            raise ConfigError(
                f"{self.path} is a {self.config.tts_model_type} checkpoint; this model needs {task}"
            )

    def generation_defaults(self) -> GenerationDefaults:
        """Sampling as generation_config.json has it; what it leaves out is upstream's."""
        raw = _read_json(self.path / "generation_config.json")
        upstream = GenerationDefaults()
        return GenerationDefaults(
            talker=_read_sampling(raw, "", "do_sample", upstream.talker),
            subtalker=_read_sampling(raw, "subtalker_", "subtalker_dosample", upstream.subtalker),
            repetition_penalty=raw.get("repetition_penalty", upstream.repetition_penalty),
        )

    def talker_weights(self, dtype: torch.dtype, device: torch.device, int8_layers: bool = False) -> Weights:
        return _open_weights(self.path, dtype, device, int8_layers).below("talker.")

    def talker_bytes(self, dtype: torch.dtype, device: torch.device) -> int:
        """About what the talker's weights and, on a GPU, its `TextTable` take; files hold bfloat16."""
        on_disk = sum(file.stat().st_size for file in _weight_files(self.path))
        talker = self.config.talker
        table = talker.text_vocab_size * talker.hidden_size if device.type == "cuda" else 0
        return on_disk * dtype.itemsize // torch.bfloat16.itemsize + table * dtype.itemsize

    def speaker_encoder_weights(self, dtype: torch.dtype, device: torch.device) -> Weights:
        return _open_weights(self.path, dtype, device).below("speaker_encoder.")

    def codec_weights(self, dtype: torch.dtype, device: torch.device) -> Weights:
        return _open_weights(self.speech_tokenizer, dtype, device).below("decoder.")

    def codec_encoder_weights(self, dtype: torch.dtype, device: torch.device) -> Weights:
        return _open_weights(self.speech_tokenizer, dtype, device).below("encoder.")


def resolve(name: str, base: Path) -> Path:
    """The directory of a checkpoint given as a directory (relative ones start at `base`) or as a hub id.

    A hub id becomes its snapshot directory before anything is read, so that there is one way to load.

    Raises:
        ConfigError: when there is neither such a directory nor such a repository within reach.
    """
    if not name:
        raise ConfigError("checkpoint is not set; name a directory or a hub id")
    path = base / Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if _looks_like_hub_id(name):
        return _download(name)
    raise ConfigError(f"there is no checkpoint directory {path}")


def _looks_like_hub_id(name: str) -> bool:
    owner, _, repository = name.partition("/")
    return bool(owner and repository) and "/" not in repository and not name.startswith((".", "~"))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{hub_id!r} is no directory here and cannot be fetched from the Hugging Face hub: {error}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the checkpoint has no file {path}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    return contents


def _read_sampling(raw: Mapping[str, Any], prefix: str, do_sample: str, default: Sampling) -> Sampling:
    return Sampling(
        do_sample=raw.get(do_sample, default.do_sample),
        temperature=raw.get(f"{prefix}temperature", default.temperature),
        top_k=raw.get(f"{prefix}top_k", default.top_k),
        top_p=raw.get(f"{prefix}top_p", default.top_p),
    )


def _codec_config(own: Path, replacement: Path | None) -> CodecConfig:
    config = read_codec_config(_read_json(own / "config.json"))
    if replacement and read_codec_config(_read_json(replacement / "config.json")) != config:
        raise ConfigError(f"the speech tokenizer at {replacement} does not have the dimensions of {own}")
    return config


def _open_weights(
    directory: Path, dtype: torch.dtype, device: torch.device, int8_layers: bool = False
) -> Weights:
    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    for file in _weight_files(directory):
        handle = _open(file)
        tensors |= {name: _loader(handle, name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    return Weights(tensors, dtype, device, int8_layers)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _weight_files(directory: Path) -> list[Path]:
    """The one file, or the shards that the index names."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return [directory / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    whole = directory / "model.safetensors"
    if not whole.is_file():
        raise ConfigError(f"the checkpoint has no file {whole}")
    return [whole]


def _loader(handle: Any, name: str) -> Callable[[], torch.Tensor]:
    return lambda: handle.get_tensor(name)
