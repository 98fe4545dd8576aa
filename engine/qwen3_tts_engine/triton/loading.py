"""What every model of the repository does with Triton's arguments before it is ready."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from qwen3_tts_engine.config import CheckpointConfig
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.processes import num_instances

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

C = TypeVar("C", bound=CheckpointConfig)


def log_to_stderr() -> None:
    """Triton's log is this process's standard error.

    Raises:
        ConfigError: for a LOG_LEVEL there is not.
    """
    level = (os.environ.get("LOG_LEVEL") or "INFO").upper()
    if level not in LEVELS:
        raise ConfigError(f"LOG_LEVEL is {level!r}; it must be one of {', '.join(LEVELS)}")
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def parameters(model_config: Mapping[str, Any]) -> dict[str, str]:
    """The `parameters` of a model's configuration as Triton's JSON has it."""
    return {name: value["string_value"] for name, value in model_config.get("parameters", {}).items()}


def read_config(kind: type[C], args: Mapping[str, str], task: str) -> C:
    """A model's knobs out of its configuration and the environment.

    Raises:
        ConfigError: for unknown or impossible values, or CUDA_DEVICE with several instances.
    """
    model_config = json.loads(args["model_config"])
    config = kind.read(parameters(model_config), os.environ, task)
    if config.device != "auto" and num_instances(model_config) > 1:
        raise ConfigError(
            "CUDA_DEVICE names one device and instance_group asks for several instances; unset one"
        )
    return config


def device(args: Mapping[str, str]) -> str:
    """The device Triton gave this instance."""
    return f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
