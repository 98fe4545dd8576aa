from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_weights(model: nn.Module, path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def make_readable(path: Path) -> None:
    """safetensors writes 0600, which the user a server runs as could not read."""
    path.chmod(0o755)
    for entry in path.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)
