"""A step's worth of sequences to tensors, and back to frames."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.code_predictor import CodePredictor
from qwen3_tts_engine.model.config import SpeechConfig
from qwen3_tts_engine.model.layers import PromptAttention
from qwen3_tts_engine.model.prompt import REFERENCE, SPEAKER, Prompt
from qwen3_tts_engine.model.sampling import RowSampling, draw, penalise
from qwen3_tts_engine.model.talker import Talker
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.sequence import Sequence

if TYPE_CHECKING:
    from qwen3_tts_engine.scheduler import Plan

MIN_FRAMES = 2  # upstream never ends an utterance before its second frame
RESERVED_CODES = 1024  # the talker's last ids are control codes; of them only the end may be drawn


class ModelRunner:
    """Talker and code predictor with the state of every slot: prefill, step, draw, embed.

    Slots 0 … n-1 are in use; everything below acts on such a prefix.
    """

    def __init__(
        self, weights: Weights, config: SpeechConfig, slots: int, attend_prompt: PromptAttention
    ) -> None:
        self._config = config
        talker, device = config.talker, weights.device
        self._embedding = CodeEmbedding(weights, talker)
        self._predictor = CodePredictor(weights.below("code_predictor."), talker, self._embedding, slots)
        self._talker = Talker(weights, talker, slots, attend_prompt)
        self.cache = self._talker.cache
        self._device = device
        self._hidden = torch.zeros(slots, talker.hidden_size, dtype=weights.dtype, device=device)
        self._next_input = torch.zeros_like(self._hidden)
        self._spoken = torch.zeros(slots, talker.vocab_size, dtype=torch.bool, device=device)
        self._noise = _Noise(
            slots, talker.vocab_size, talker.num_code_groups - 1, self._predictor.vocab_size, device
        )
        self._suppressed = self._control_codes(talker.vocab_size, talker.codec_eos_token_id)
        self._settings: _Settings | None = None

    @torch.inference_mode()
    def run(self, plan: Plan) -> NDArray[np.int64]:
        """One frame of every row -> codes [rows, 16]; a row that ends has the end code first."""
        if plan.running:
            self._step(plan.running)
        if plan.newcomers:
            self._prefill(plan.newcomers)
        codes = self._speak(plan.rows)
        self._hear(plan.rows, codes)
        return codes.cpu().numpy()

    @torch.inference_mode()
    def move(self, source: int, target: int, positions: int) -> None:
        """Let one slot's row take another's place."""
        self.cache.move(source, target, positions)
        for state in (self._hidden, self._next_input, self._spoken):
            state[target] = state[source]
        self._noise.move(source, target)
        self._settings = None

    def forget(self) -> None:
        """Nobody is left: give back the memory long utterances took."""
        self.cache.shrink()

    def _step(self, running: Rows[Sequence]) -> None:
        positions = [s.position - 1 for s in running]  # the frame spoken last goes in now
        self.cache.fit(max(positions) + 1)
        x = self._next_input[: len(running)]
        self._hidden[: len(running)] = self._talker.step(x, self._tensor(positions), max(positions))

    def _prefill(self, newcomers: Rows[Sequence]) -> None:
        first, count = newcomers[0].slot, len(newcomers)
        self.cache.fit(max(len(s.prompt) for s in newcomers))
        prompts = [self._embed(s.prompt) for s in newcomers]
        self._hidden[first : first + count] = self._talker.prefill(prompts, first)
        self._spoken[first : first + count] = False
        for sequence in newcomers:
            self._noise.seed(sequence.slot, sequence.seed)
        self._settings = None

    def _embed(self, prompt: Prompt) -> Tensor:
        """Text and codec tracks -> [L, D]. The text that follows is projected here, too."""
        self._talker.text.learn({self._config.tts_pad_token_id, *prompt.text, *prompt.trailing})
        codec = self._tensor(prompt.codec)
        spoken = self._embedding.first[codec.clamp(min=0)] * (codec >= 0)[:, None]
        if prompt.voice is not None:
            spoken[codec == SPEAKER] = torch.from_numpy(prompt.voice.speaker_embedding).to(spoken)
            if prompt.voice.ref_codes is not None:
                reference = torch.from_numpy(prompt.voice.ref_codes).to(self._device)
                spoken[codec == REFERENCE] = self._embedding.sum(reference)
        return self._talker.text(self._tensor(prompt.text)) + spoken

    def _speak(self, rows: Rows[Sequence]) -> Tensor:
        """Draw a whole frame: int64 [B, 16]."""
        settings = self._settings_of(rows)
        noise_first, noise_rest = self._noise.draw([s.request for s in rows])
        hidden = self._hidden[: len(rows)]
        logits = penalise(self._talker.logits(hidden), self._spoken[: len(rows)], settings.penalty)
        logits.masked_fill_(self._suppressed, -torch.inf)
        too_early = [s.slot for s in rows if s.num_frames < MIN_FRAMES]
        logits[too_early, self._config.talker.codec_eos_token_id] = -torch.inf
        first = draw(logits, settings.talker, noise_first)
        rest = self._predictor.frame(hidden, first, settings.subtalker, noise_rest)
        return torch.cat([first[:, None], rest], 1)

    def _hear(self, rows: Rows[Sequence], codes: Tensor) -> None:
        """What was spoken, and the next text token, become the talker's next input."""
        batch, pad = len(rows), self._config.tts_pad_token_id
        self._spoken[:batch].scatter_(1, codes[:, :1], True)
        text = self._tensor([pad if s.next_text_token is None else s.next_text_token for s in rows])
        self._next_input[:batch] = self._embedding.sum(codes) + self._talker.text(text)

    def _settings_of(self, rows: Rows[Sequence]) -> _Settings:
        if self._settings is None or len(self._settings.penalty) != len(rows):
            self._settings = _Settings(rows, self._config, self._device)
        return self._settings

    def _control_codes(self, vocab_size: int, eos: int) -> Tensor:
        suppressed = torch.zeros(vocab_size, dtype=torch.bool, device=self._device)
        suppressed[vocab_size - RESERVED_CODES :] = True
        suppressed[eos] = False
        return suppressed

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class _Settings:
    """How the rows of the batch draw; made anew when the batch changes."""

    def __init__(self, rows: Rows[Sequence], config: SpeechConfig, device: torch.device) -> None:
        talker = config.talker
        requests = [s.request for s in rows]
        self.talker = RowSampling.of([r.talker for r in requests], talker.vocab_size, device)
        predictor_vocab = talker.code_predictor_config.vocab_size
        self.subtalker = RowSampling.of([r.subtalker for r in requests], predictor_vocab, device)
        self.penalty = torch.tensor([[r.repetition_penalty] for r in requests], device=device)


class _Noise:
    """The randomness of every slot, drawn with its request's own generator in upstream's order."""

    def __init__(
        self, slots: int, first_vocab: int, steps: int, rest_vocab: int, device: torch.device
    ) -> None:
        self._generators = [torch.Generator(device) for _ in range(slots)]
        self._first = torch.ones(slots, first_vocab, device=device)
        self._rest = torch.ones(slots, steps, rest_vocab, device=device)

    def seed(self, slot: int, seed: int) -> None:
        self._generators[slot].manual_seed(seed)

    def move(self, source: int, target: int) -> None:
        self._generators[target].set_state(self._generators[source].get_state())

    def draw(self, requests: Rows[SpeechRequest]) -> tuple[Tensor, Tensor]:
        """Unit exponential draws of the first B slots: [B, V] and [B, 15, V']; greedy models draw none."""
        for slot, request in enumerate(requests):
            generator = self._generators[slot]
            if request.talker.do_sample:
                self._first[slot].exponential_(1, generator=generator)
            if request.subtalker.do_sample:
                for step in self._rest[slot]:
                    step.exponential_(1, generator=generator)
        return self._first[: len(requests)], self._rest[: len(requests)]
