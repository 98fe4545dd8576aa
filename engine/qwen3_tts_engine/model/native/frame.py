"""Whole frames, each one call of the native library."""

from __future__ import annotations

from ctypes import byref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.kv_cache import FrameCache
from qwen3_tts_engine.model.native.layers import Scratch, cache_of, can_load_layers, load_decoder
from qwen3_tts_engine.model.native.library import (
    NUMBERS,
    Beats,
    FrameModel,
    Product,
    Rules,
    Slots,
    library,
    native,
)
from qwen3_tts_engine.model.native.weights import Kept
from qwen3_tts_engine.model.sampling import RowSampling, suppressed_codes
from qwen3_tts_engine.model.slot_state import MIN_FRAMES, FrameKind, SlotState

if TYPE_CHECKING:
    from qwen3_tts_engine.model.talker import TextTable

PREDICTOR = "code_predictor."
PROJECTION = "small_to_mtp_projection"


class NativeFrame:
    """A `frame.Frame` in one piece: what each slot says does not depend on who else speaks."""

    def __init__(
        self, weights: Weights, config: TalkerConfig, embedding: CodeEmbedding, text: TextTable, slots: int
    ) -> None:
        own, codes, lanes = config.code_predictor_config, config.num_code_groups, native().lanes()
        predictor, kept = weights.below(PREDICTOR), Kept()
        heads = [kept.product(predictor.take(f"lm_head.{k}.weight"), lanes) for k in range(codes - 1)]
        projection, bias = Product(), torch.zeros(own.hidden_size)
        if predictor.has(f"{PROJECTION}.weight"):
            projection = kept.product(predictor.take(f"{PROJECTION}.weight"), lanes)
            bias = predictor.take(f"{PROJECTION}.bias").float()
        self._model = FrameModel(
            predictor=load_decoder(predictor.below("model."), own, codes, kept),
            first_head=kept.product(weights.take("codec_head.weight"), lanes),
            heads=(Product * len(heads))(*heads),
            projection=projection,
            projection_bias=kept.address(bias),
            embeddings=kept.address(embedding.table),
            suppressed=kept.address(suppressed_codes(config.vocab_size, config.codec_eos_token_id)),
            hidden=config.hidden_size,
            codes=codes,
            first_vocab=config.vocab_size,
            vocab=own.vocab_size,
            eos=config.codec_eos_token_id,
            min_frames=MIN_FRAMES,
        )
        self._cache = FrameCache(own, slots, codes, weights.dtype, weights.device)
        self._where = cache_of(self._cache)
        self._beats = _beats(slots, codes, kept)
        self._most = slots
        self._text = text
        self._number = NUMBERS[weights.dtype]
        self._scratch = Scratch()
        self._kept = kept

    @staticmethod
    def can_load(weights: Weights, config: TalkerConfig) -> bool:
        """Whether these weights have a type and sizes that fit, and there is a library for this processor."""
        compiled, own = library(), config.code_predictor_config
        if compiled is None or not can_load_layers(weights, own, f"{PREDICTOR}model."):
            return False
        vocabularies = (config.vocab_size, own.vocab_size)
        return config.hidden_size % compiled.lanes() == 0 and all(
            size % (2 * compiled.lanes()) == 0 for size in vocabularies
        )

    def speak(self, state: SlotState, batch: int, kind: FrameKind) -> None:
        """See `frame.Frame`; it finds out for itself how a row draws."""
        threads = torch.get_num_threads()
        num_bytes = native().frame_scratch_bytes(
            byref(self._model), self._most, self._where.capacity, threads
        )
        native().speak_frame(
            byref(self._model),
            self._number,
            byref(self._slots(state, batch)),
            byref(self._beats),
            self._most,
            byref(self._where),
            self._scratch.of(num_bytes),
            threads,
        )

    def _slots(self, state: SlotState, batch: int) -> Slots:
        return Slots(
            count=batch,
            hidden=state.hidden.data_ptr(),
            next_input=state.next_input.data_ptr(),
            text_table=self._text.rows.data_ptr(),
            text=state.text.data_ptr(),
            num_frames=state.num_frames.data_ptr(),
            spoken=state.spoken.data_ptr(),
            penalty=state.penalty.data_ptr(),
            first=_rules(state.first),
            rest=_rules(state.rest),
            noise=state.noise.data_ptr(),
            codes=state.codes.data_ptr(),
        )


def _rules(rows: RowSampling) -> Rules:
    return Rules(*(it.data_ptr() for it in (rows.sampled, rows.temperature, rows.kth, rows.tail)))


def _beats(slots: int, codes: int, kept: Kept) -> Beats:
    """Which slot each row is of, and where, at every code after the first."""
    every = torch.arange(slots)
    begin = torch.arange(2).repeat(slots)
    later = [torch.full_like(begin, position) for position in range(2, codes)]
    columns: tuple[Tensor, ...] = (every, every.repeat_interleave(2), torch.stack([begin, *later]))
    return Beats(*(kept.address(column) for column in columns))
