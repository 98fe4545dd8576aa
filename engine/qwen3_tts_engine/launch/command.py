"""How tritonserver is started: its command line and what its processes see."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from qwen3_tts_engine.collector import trace_flags
from qwen3_tts_engine.config import CHECKPOINT_VARIABLES
from qwen3_tts_engine.launch.access import VARIABLE as KEY_VARIABLE
from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.machine import num_available_cores
from qwen3_tts_engine.launch.tritonserver import Installation

RESPONSE_CACHE_BYTES = 128 << 20  # for models of an operator's own; ours are not cached (decision 9)
# Only the gateway needs these: keys in the clear, and a Redis's URL with its password. It takes them in small
# letters, too.
NOT_FOR_MODELS = frozenset({KEY_VARIABLE, "API_KEYS", "LIMITS_STORE"})
PATHS = (*CHECKPOINT_VARIABLES.values(), "QWEN_TTS_TOKENIZER", "VOICE_STORE", "MODEL_CACHE_DIR")


def command(config: LaunchConfig, installation: Installation, regions_prefix: str) -> list[str]:
    addresses = (f"--{service}-address={config.host}" for service in ("http", "grpc", "metrics"))
    return [
        str(installation.binary),
        f"--model-repository={config.model_repository}",
        "--model-control-mode=explicit",
        *(["--load-model=*"] if config.preload_models else []),
        # Completing the configuration would import every model.py, and with it torch, twice.
        "--disable-auto-complete-config",
        # Each load imports torch: more at once than there are cores only makes all of them late.
        f"--model-load-thread-count={min(4, num_available_cores())}",
        *addresses,
        f"--http-port={config.http_port}",
        f"--grpc-port={config.grpc_port}",
        f"--metrics-port={config.metrics_port}",
        # By default the server answers the third ping without data with GOAWAY. Our client pings too seldom
        # for that; Envoy in front of several Tritons pings every 30 s, calls or none, and so may others.
        "--grpc-keepalive-permit-without-calls=1",
        "--grpc-http2-min-recv-ping-interval-without-data=10000",
        f"--cache-config=local,size={RESPONSE_CACHE_BYTES}",
        f"--exit-timeout-secs={config.exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={regions_prefix}",
        *installation.flags,
        *(["--log-verbose=1"] if config.verbose else []),
        *config.access.flags,
        *trace_flags(config.environment),
        *config.extra_args,
    ]


def server_environment(given: Mapping[str, str], installation: Installation) -> dict[str, str]:
    folders = [*map(str, installation.library_path), given.get("LD_LIBRARY_PATH", "")]
    given = {name: value for name, value in given.items() if name.upper() not in NOT_FOR_MODELS}
    given |= {name: _from_here(given[name], name) for name in PATHS if name in given}
    return {
        "OMP_NUM_THREADS": str(num_available_cores()),
        # Idle threads of one model process must not spin on the cores that another one computes on.
        "OMP_WAIT_POLICY": "passive",
        **({"HF_HOME": given["MODEL_CACHE_DIR"]} if "MODEL_CACHE_DIR" in given else {}),
        **given,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders)),
        # The stub finds this interpreter's packages through the first python3 on PATH.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", os.defpath)]),
    }


def _from_here(value: str, variable: str) -> str:
    """A path that starts where the launcher was started; each model would start it in its own folder.

    A hub id is no path unless there is such a directory, and a URL is none.
    """
    path = Path(value).expanduser()
    is_path = path.is_dir() if variable.startswith("QWEN_TTS_") else ":" not in value
    return str(path.absolute()) if is_path else value
