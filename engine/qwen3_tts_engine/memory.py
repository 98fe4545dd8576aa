"""What a slot takes of the device's memory, and how many slots a budget has room for."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.config import DecoderConfig, TalkerConfig
from qwen3_tts_engine.model.kv_cache import BLOCK
from qwen3_tts_engine.request import MAX_REFERENCE_FRAMES

logger = logging.getLogger(__name__)

MB = 1_000_000
# Of what weights leave free when a model loads: three speech models and the voice encoder may share a device.
SHARE = 0.25
MOST_SLOTS = (
    64  # a larger batch takes longer for a frame than a listener for hearing it, on any device measured
)


@dataclass(frozen=True)
class SlotMemory:
    """Bytes that every slot takes.

    Args:
        at_once: from the start: the codec's state, the code predictor's keys and values, the row's noise.
        per_position: for every position of the longest utterance in flight: the talker's keys and values.
        resident: positions that are kept from the start, and beside the cache of a longer utterance.
    """

    at_once: int
    per_position: int
    resident: int = 0

    @classmethod
    def of(
        cls, talker: TalkerConfig, dtype: torch.dtype, codec_past: Iterable[Tensor], resident: int = 0
    ) -> SlotMemory:
        """codec_past: the state of one row, as `CodecDecoder.blank_past(1)` makes it."""
        predictor = talker.code_predictor_config
        groups = talker.num_code_groups
        keys_and_values = groups * _position_bytes(predictor, dtype)
        noise = (talker.vocab_size + (groups - 1) * predictor.vocab_size) * torch.float32.itemsize
        hidden_states = 2 * talker.hidden_size * dtype.itemsize
        spoken = talker.vocab_size * torch.bool.itemsize
        codec = sum(tensor.nbytes for tensor in codec_past)
        at_once = keys_and_values + noise + hidden_states + spoken + codec
        return cls(at_once, _position_bytes(talker, dtype), resident)

    def at(self, positions: int) -> int:
        """Bytes of a slot when the longest utterance in flight has so many positions."""
        blocks = -(-positions // BLOCK) * BLOCK
        longer = blocks if blocks > self.resident else 0
        return self.at_once + (self.resident + longer) * self.per_position


def choose_slots(
    config: EngineConfig, slot: SlotMemory, talker: TalkerConfig, device: torch.device, weight_bytes: int
) -> int:
    """What the operator set, or as many as the memory budget holds whoever speaks for however long.

    Args:
        config: with the number or the budget.
        slot: what one takes.
        talker: how long anyone may speak at most.
        device: whose memory it is.
        weight_bytes: what will be loaded there besides.

    Raises:
        ConfigError: when it does not hold one.
    """
    if config.slots is not None:
        return config.slots
    most_bytes = slot.at(longest_utterance(config, talker))
    slots = slots_within(_budget_bytes(config, device, weight_bytes), most_bytes)
    logger.info("%d slots of up to %d MB", slots, most_bytes // MB)
    return slots


def longest_utterance(config: EngineConfig, talker: TalkerConfig) -> int:
    """Positions of the longest prompt and the longest speech after it; a block for the marks around them."""
    prompt = 2 * config.max_text_tokens + MAX_REFERENCE_FRAMES + BLOCK
    return min(prompt + config.max_frames, talker.max_position_embeddings)


def slots_within(budget_bytes: int, slot_bytes: int) -> int:
    """Raises ConfigError when not even one slot fits."""
    if budget_bytes < slot_bytes:
        raise ConfigError(
            f"slots is auto, and not one fits: it may take {-(-slot_bytes // MB)} MB of a budget of"
            f" {budget_bytes // MB} MB; raise memory_budget_mb, or lower max_frames or max_text_tokens"
        )
    return min(budget_bytes // slot_bytes, MOST_SLOTS)


def _budget_bytes(config: EngineConfig, device: torch.device, weight_bytes: int) -> int:
    if config.memory_budget_mb is not None:
        return config.memory_budget_mb * MB
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return max(0, int(SHARE * (free - weight_bytes)))


def available_bytes(root: Path = Path("/")) -> int:
    """What a process may still take of this machine, or of its container's limit where that is less.

    Source: "MemAvailable" of proc_meminfo(5); `memory.max`, `memory.current` and `memory.stat` of
    the kernel's cgroup v2. Files that were read are in `memory.current`, and make room when it is wanted.
    """
    machine = 1024 * _field(root / "proc/meminfo", r"MemAvailable:\s+(\d+) kB")
    group = root / "sys/fs/cgroup"
    if not (group / "memory.max").exists() or (group / "memory.max").read_text().strip() == "max":
        return machine
    limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    files = sum(_field(group / "memory.stat", rf"{name}_file (\d+)") for name in ("active", "inactive"))
    return max(0, min(machine, limit - used + files))


def _field(page: Path, pattern: str) -> int:
    return int(re.findall(rf"^{pattern}$", page.read_text(), flags=re.MULTILINE)[0])


def give_back_freed_memory() -> None:
    """Let the system have what the C library keeps of memory that was freed.

    Chunks and prompts of many sizes leave holes, in which glibc would keep a few megabytes more from hour to
    hour; another C library has no such call, and may not need it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _position_bytes(decoder: DecoderConfig, dtype: torch.dtype) -> int:
    width = decoder.num_key_value_heads * decoder.head_dim
    return 2 * decoder.num_hidden_layers * width * dtype.itemsize
