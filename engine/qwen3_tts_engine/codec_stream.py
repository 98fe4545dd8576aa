"""The codec's state of every slot, and the decoding of whichever slots have a chunk due."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_tts_engine.device import Fetched, Graphs, OwnStream, Step, send
from qwen3_tts_engine.model.codec_decoder import CodecDecoder, parts
from qwen3_tts_engine.model.steps import Buckets, ChunkBuffers, CodecState, codec_step

Chunks = Mapping[int, list[NDArray[np.int64]]]
"""Frames [16] by slot."""

# On a CPU, where rows side by side save nothing once the weights are read: what these frames pass through
# still fits its caches. A row more costs the published codec a quarter of its time.
FRAMES_AT_ONCE = 24
# What a CPU decodes is cut into so many frames of 1, 2, 4, … rows: oneDNN compiles code for every shape it
# meets, which takes as long as decoding it once and some megabytes for ever (docs/memory.md).
LENGTHS = (1, 2, 4, 8, 12, 16, 24)
REFERENCES_KEPT = 32  # 5.2 MB each with the published codec


class CodecStream:
    """Slots decode at their own pace; a slot that is left out of a call is as if the call had not been.

    On a GPU all of it happens on a stream of its own: chunks are voiced while the next frame is spoken, if
    their caller does not wait for them before.
    """

    def __init__(
        self, decoder: CodecDecoder, slots: int, device: torch.device, graphs: Graphs | None = None
    ) -> None:
        self._decoder = decoder
        self._graphs = graphs or Graphs()
        self._is_divided = device.type == "cpu" and not self._graphs.can_record
        self._batches = Buckets.of_rows(slots, few=self._graphs.can_record)
        self._slots = slots
        self._state = CodecState(decoder, slots, device)
        self._recorded: dict[tuple[int, int], ChunkBuffers] = {}  # by batch and frames
        self._references: OrderedDict[bytes, list[Tensor]] = OrderedDict()  # least recently used first
        self._stream = OwnStream(device)
        self._device = device

    @torch.inference_mode()
    def warm_up(self, lengths: Sequence[int]) -> None:
        """Meet chunks of up to these lengths before anybody speaks: a GPU records their decoding, a CPU
        compiles it."""
        if self._graphs.can_record:
            self._record(lengths)
        elif self._is_divided:
            self._compile(max(lengths))

    def decode(self, chunks: Chunks) -> dict[int, NDArray[np.float32]]:
        """Frames [16] by slot -> samples [n · 1920] by slot; equally long chunks are decoded together."""
        samples: dict[int, list[NDArray[np.float32]]] = {slot: [] for slot in chunks}
        for slots, rows in self.launch(chunks):
            for slot, row in zip(slots, rows.numpy(), strict=True):
                samples[slot].append(row)
        return {slot: np.concatenate(pieces) for slot, pieces in samples.items()}

    @torch.inference_mode()
    def launch(self, chunks: Chunks) -> list[tuple[list[int], Fetched]]:
        """Queue the decoding: slots and samples once the device has come so far, a slot's in their order."""
        with self._stream.after_the_main_one():
            return [self._launch_equal(together) for together in self._groups(chunks)]

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Forget what a slot's previous owner said."""
        with self._stream.after_the_main_one():
            self._state.reset(slot)

    @torch.inference_mode()
    def remember(self, slot: int, codes: NDArray[np.int64]) -> None:
        """Let a slot begin as if it had just spoken these reference frames, [N, 16]."""
        with self._stream.after_the_main_one():
            self._state.num_frames[slot] = len(codes)
            for past, remembered in zip(self._state.past, self._past_of(codes), strict=True):
                past[slot] = remembered[0]

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        with self._stream.after_the_main_one():
            self._state.move(source, target)

    def _record(self, lengths: Sequence[int]) -> None:
        sizes = product(sorted(set(lengths), reverse=True), self._batches.sizes[::-1])
        self._recorded = {(batch, length): self._state.chunks(batch, length) for length, batch in sizes}
        with self._stream.after_the_main_one():
            self._graphs.record(dict(self._step(buffers) for buffers in self._recorded.values()))

    def _compile(self, longest: int) -> None:
        for length in (it for it in LENGTHS if it <= longest):
            for rows in (it for it in _row_counts(length) if it <= self._slots):
                self._graphs.run(*self._step(self._state.chunks(rows, length)))

    def _past_of(self, codes: NDArray[np.int64]) -> list[Tensor]:
        """A voice that speaks again finds the state that its reference left."""
        key = hashlib.sha256(codes.tobytes()).digest()
        if key not in self._references:
            past = self._decoder.remember(torch.from_numpy(codes)[None].to(self._device))
            self._references[key] = [tensor.clone() for tensor in past]  # each is a view of much more
            if len(self._references) > REFERENCES_KEPT:
                self._references.popitem(last=False)
        self._references.move_to_end(key)
        return self._references[key]

    def _groups(self, chunks: Chunks) -> Iterator[Chunks]:
        """Chunks of one length; on a CPU in the sizes that it is used to."""
        for length in sorted({len(frames) for frames in chunks.values()}):
            equal = {slot: frames for slot, frames in chunks.items() if len(frames) == length}
            yield from _divided(equal, length) if self._is_divided else [equal]

    def _launch_equal(self, chunks: Chunks) -> tuple[list[int], Fetched]:
        slots = list(chunks)
        codes = torch.from_numpy(np.stack([np.stack(frames) for frames in chunks.values()]))  # [n, N, 16]
        buffers = self._buffers_for(len(slots), codes.shape[1])
        vacant = [self._state.scratch] * (len(buffers.slots) - len(slots))
        send(torch.tensor(slots + vacant), buffers.slots)
        send(codes, buffers.codes[: len(slots)])
        self._graphs.run(*self._step(buffers))
        return slots, Fetched(buffers.samples[: len(slots)])

    def _buffers_for(self, rows: int, length: int) -> ChunkBuffers:
        batch = self._batches.fit(rows)
        return self._recorded.get((batch, length)) or self._state.chunks(batch, length)

    def _step(self, buffers: ChunkBuffers) -> tuple[object, Step]:
        batch, length, _ = buffers.codes.shape
        return (codec_step, batch, length), partial(codec_step, self._decoder, self._state, buffers)


def _divided(equal: Chunks, length: int) -> Iterator[Chunks]:
    """Equally long chunks as pieces of few shapes, the frames of each row in their order."""
    rows = list(equal.items())
    for part in parts(length, LENGTHS):
        for some in parts(len(rows), _row_counts(part.stop - part.start)):
            yield {slot: frames[part] for slot, frames in rows[some]}


def _row_counts(length: int) -> list[int]:
    """How many rows of so many frames a CPU decodes at once: powers of two."""
    return [2**i for i in range((FRAMES_AT_ONCE // length).bit_length())]
