"""The codec's state of every slot, and the decoding of whichever slots have a chunk due."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_tts_engine.model.codec_decoder import CodecDecoder

REFERENCES_KEPT = 32  # 5.2 MB each with the published codec


class CodecStream:
    """Slots decode at their own pace; a slot that is left out of a call is as if the call had not been."""

    def __init__(self, decoder: CodecDecoder, slots: int, device: torch.device) -> None:
        self._decoder = decoder
        self._past = decoder.blank_past(slots)
        self._frames = torch.zeros(slots, dtype=torch.int64, device=device)
        self._references: OrderedDict[bytes, list[Tensor]] = OrderedDict()  # least recently used first

    def decode(self, chunks: Mapping[int, list[NDArray[np.int64]]]) -> dict[int, NDArray[np.float32]]:
        """Frames [16] by slot -> samples [n · 1920] by slot; equally long chunks are decoded together."""
        samples: dict[int, NDArray[np.float32]] = {}
        for length in sorted({len(frames) for frames in chunks.values()}):
            together = {slot: frames for slot, frames in chunks.items() if len(frames) == length}
            samples |= zip(together, self._decode_equal(together), strict=True)
        return samples

    def reset(self, slot: int) -> None:
        """Forget what a slot's previous owner said."""
        self._frames[slot] = 0
        for past in self._past:
            past[slot] = 0

    def remember(self, slot: int, codes: NDArray[np.int64]) -> None:
        """Let a slot begin as if it had just spoken these reference frames, [N, 16]."""
        self._frames[slot] = len(codes)
        for past, remembered in zip(self._past, self._past_of(codes), strict=True):
            past[slot] = remembered[0]

    def move(self, source: int, target: int) -> None:
        self._frames[target] = self._frames[source]
        for past in self._past:
            past[target] = past[source]

    def _past_of(self, codes: NDArray[np.int64]) -> list[Tensor]:
        """A voice that speaks again finds the state that its reference left."""
        key = hashlib.sha256(codes.tobytes()).digest()
        if key not in self._references:
            self._references[key] = self._decoder.remember(
                torch.from_numpy(codes)[None].to(self._frames.device)
            )
            if len(self._references) > REFERENCES_KEPT:
                self._references.popitem(last=False)
        self._references.move_to_end(key)
        return self._references[key]

    def _decode_equal(self, chunks: Mapping[int, list[NDArray[np.int64]]]) -> NDArray[np.float32]:
        slots = torch.tensor(list(chunks), device=self._frames.device)
        codes = torch.from_numpy(np.stack([np.stack(frames) for frames in chunks.values()])).to(slots.device)
        past = [tensor[slots] for tensor in self._past]
        audio, updated = self._decoder.decode(codes, self._frames[slots], past)
        self._frames[slots] += codes.shape[1]
        for tensor, new in zip(self._past, updated, strict=True):
            tensor[slots] = new
        samples: NDArray[np.float32] = audio.cpu().numpy()
        return samples
