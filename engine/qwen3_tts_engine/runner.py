"""A step's worth of sequences to tensors, and back to frames."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwen3_tts_engine.device import Fetched, Graphs, Step, send
from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import SpeechConfig
from qwen3_tts_engine.model.layers import AttentionKernels
from qwen3_tts_engine.model.prompt import REFERENCE, SPEAKER, Prompt
from qwen3_tts_engine.model.sampling import ANY, USUAL, DrawKind, RowSampling
from qwen3_tts_engine.model.slot_state import GREEDY, FrameKind, SlotState
from qwen3_tts_engine.model.steps import (
    RECORDED_SPANS,
    Buckets,
    LanguageModels,
    predictor_frame,
    talker_step,
)
from qwen3_tts_engine.request import Sampling, SpeechRequest
from qwen3_tts_engine.sequence import Sequence

if TYPE_CHECKING:
    from qwen3_tts_engine.scheduler import Plan

Settings = tuple[Sampling, Sampling, float]  # talker, sub-talker, repetition penalty
HOST = torch.device("cpu")
RECORDED_KINDS = (FrameKind(USUAL, USUAL), FrameKind(ANY, ANY))  # the second covers whatever may be asked


def resident_positions(graphs: Graphs) -> int:
    """How much of every slot's cache recorded steps read: that must not move."""
    return RECORDED_SPANS[-1] if graphs.can_record else 0


class ModelRunner:
    """Talker and code predictor with the state of every slot: stages what a step needs and runs it.

    Slots 0 … n-1 are in use; everything below acts on such a prefix.
    """

    def __init__(
        self,
        weights: Weights,
        config: SpeechConfig,
        slots: int,
        attention: AttentionKernels,
        graphs: Graphs,
    ) -> None:
        talker, device = config.talker, weights.device
        few = graphs.can_record
        self._batches = Buckets.of_rows(slots, few)
        self._spans = Buckets.of_positions(talker.max_position_embeddings, few)
        self._kinds = RECORDED_KINDS if few else ()
        self._models = LanguageModels(weights, talker, slots, attention, resident_positions(graphs))
        self._state = SlotState(talker, slots, weights.dtype, device)
        self._noise = _Noise(self._state)
        self._graphs = graphs
        self._config = config
        self._slots = slots
        self._device = device
        self._settings: list[Settings] = []  # of the rows as staged
        self._kind = FrameKind(USUAL, USUAL)  # what those settings make together
        self.cache = self._models.talker.cache

    @torch.inference_mode()
    def record(self) -> None:
        """Have the device record every step it may replay; only while no slot is in use."""
        if self._graphs.can_record:
            batches, spans = self._batches.sizes[::-1], RECORDED_SPANS[::-1]
            talker_steps = [self._talker_step(batch, span) for span, batch in product(spans, batches)]
            frames = [self._predictor_frame(batch, kind) for batch, kind in product(batches, self._kinds)]
            self._graphs.record(dict([*talker_steps, *frames]))

    @torch.inference_mode()
    def advance(self, plan: Plan) -> None:
        """Those who speak on hear their last frame."""
        self._stage(plan)
        if plan.running:
            self._step(plan.running)

    @torch.inference_mode()
    def prefill(self, newcomers: Rows[Sequence]) -> None:
        """Read the prompts of those who have just got the slots after the others'.

        After `advance`, which may write to slots that nobody speaks in yet.
        """
        first, count = newcomers[0].slot, len(newcomers)
        self.cache.fit(max(len(s.prompt) for s in newcomers))
        prompts = [self._embed(s.prompt) for s in newcomers]
        self._state.hidden[first : first + count] = self._models.talker.prefill(prompts, first)
        self._state.spoken[first : first + count] = False
        for sequence in newcomers:
            self._noise.seed(sequence.slot, sequence.seed)

    @torch.inference_mode()
    def speak(self, rows: Rows[Sequence]) -> Fetched:
        """One frame of every row: codes [rows, 16], which are there when the device has come so far.

        A row that ends has the end code first.
        """
        requests = [s.request for s in rows]
        settings = [(r.talker, r.subtalker, r.repetition_penalty) for r in requests]
        if settings != self._settings:
            self._kind, self._settings = self._settle(settings), settings
        self._noise.draw(requests)
        self._graphs.run(*self._predictor_frame(self._batches.fit(len(rows)), self._kind))
        return Fetched(self._state.codes[: len(rows)])

    @torch.inference_mode()
    def move(self, source: int, target: int, positions: int) -> None:
        """Let one slot's row take another's place."""
        self.cache.move(source, target, positions)
        self._state.move(source, target)
        self._noise.move(source, target)

    def forget(self, longest: int) -> None:
        """Nobody in flight has more positions than that: give back the memory longer utterances took."""
        self.cache.shrink(longest)

    def _stage(self, plan: Plan) -> None:
        """What the host knows of the frame about to be spoken; rows that only fill a bucket are at 0."""
        pad = self._config.tts_pad_token_id
        positions = [s.position - 1 for s in plan.running]  # where the frame spoken last goes
        text = [pad if s.next_text_token is None else s.next_text_token for s in plan.rows]
        num_frames = [s.num_frames for s in plan.rows]
        send(torch.tensor([self._padded(v) for v in (positions, text, num_frames)]), self._state.staged)

    def _padded(self, values: list[int]) -> list[int]:
        return values + [0] * (self._slots - len(values))

    def _step(self, running: Rows[Sequence]) -> None:
        longest = max(s.position for s in running)
        batch, span = self._batches.fit(len(running)), self._spans.fit(longest)
        self.cache.fit(span)
        self._graphs.run(*self._talker_step(batch, span))

    def _embed(self, prompt: Prompt) -> Tensor:
        """Text and codec tracks -> [L, D]. The text that follows is projected here, too."""
        embedding, text = self._models.embedding, self._models.talker.text
        text.learn({self._config.tts_pad_token_id, *prompt.text, *prompt.trailing})
        codec = self._tensor(prompt.codec)
        spoken = embedding.first[codec.clamp(min=0)] * (codec >= 0)[:, None]
        if prompt.voice is not None:
            spoken[codec == SPEAKER] = torch.from_numpy(prompt.voice.speaker_embedding).to(spoken)
            if prompt.voice.ref_codes is not None:
                reference = torch.from_numpy(prompt.voice.ref_codes).to(self._device)
                spoken[codec == REFERENCE] = embedding.sum(reference)
        return text(self._tensor(prompt.text)) + spoken

    def _settle(self, settings: list[Settings]) -> FrameKind:
        """Stage how the rows draw; rows that only fill a bucket are greedy."""
        state, talker = self._state, self._config.talker
        vacant = [GREEDY] * (self._slots - len(settings))
        first, rest, penalties = (list(column) for column in zip(*settings, strict=True))
        first_vocab, rest_vocab = talker.vocab_size, talker.code_predictor_config.vocab_size
        state.first.become(RowSampling.of([*first, *vacant], first_vocab, HOST))
        state.rest.become(RowSampling.of([*rest, *vacant], rest_vocab, HOST))
        send(torch.tensor(penalties)[:, None], state.penalty[: len(settings)])
        exact = FrameKind(DrawKind.of(first, first_vocab), DrawKind.of(rest, rest_vocab))
        return next((kind for kind in self._kinds if kind.covers(exact)), exact)

    def _talker_step(self, batch: int, span: int) -> tuple[object, Step]:
        """A step and its key; with another capacity the same step reads other memory."""
        step = partial(talker_step, self._models, self._state, batch, span)
        return (talker_step, batch, span, self.cache.capacity), step

    def _predictor_frame(self, batch: int, kind: FrameKind) -> tuple[object, Step]:
        step = partial(predictor_frame, self._models, self._state, batch, kind)
        return (predictor_frame, batch, kind), step

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class _Noise:
    """The randomness of every slot, drawn with its request's own generator.

    On a CPU in upstream's order and sizes, which makes a draw upstream's; on a GPU, where a seed means other
    numbers anyway, a row's whole frame at once.
    """

    def __init__(self, state: SlotState) -> None:
        device = state.noise.device
        self._in_one_go = device.type == "cuda"
        self._generators = [torch.Generator(device) for _ in state.noise]
        self._frames = list(state.noise)
        self._firsts = list(state.first_noise)
        self._rests = [list(row) for row in state.rest_noise]

    def seed(self, slot: int, seed: int) -> None:
        self._generators[slot].manual_seed(seed)

    def move(self, source: int, target: int) -> None:
        self._generators[target].set_state(self._generators[source].get_state())

    def draw(self, requests: Rows[SpeechRequest]) -> None:
        """Unit exponential draws of a frame of the first B slots; greedy models draw none."""
        for slot, request in enumerate(requests):
            for values in self._wanted(slot, request):
                values.exponential_(1, generator=self._generators[slot])

    def _wanted(self, slot: int, request: SpeechRequest) -> list[Tensor]:
        if self._in_one_go:
            return [self._frames[slot]] if request.talker.do_sample or request.subtalker.do_sample else []
        first = [self._firsts[slot]] if request.talker.do_sample else []
        return first + (self._rests[slot] if request.subtalker.do_sample else [])
