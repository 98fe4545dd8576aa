"""Where every slot is in its utterance, in memory that stays where it is, and how its codes are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.sampling import DrawKind, RowSampling
from qwen3_tts_engine.request import Sampling

GREEDY = Sampling(do_sample=False)
MIN_FRAMES = 2  # upstream never ends an utterance before its second frame


class SlotState:
    """Where every slot is: one row each, in tensors that stay where they are.

    Attributes:
        staged: what the host says before each step, int64 [3, S]; the next three are its rows.
        position: where in the talker's context `next_input` goes.
        text: the text token that joins the frame about to be spoken.
        num_frames: frames spoken before this one.
        noise: unit exponential draws of a frame, [S, V + 15·V'].
        hidden: what the talker means, [S, D].
        codes: the frame, int64 [S, 16].
        next_input: what the talker hears of it, [S, D].
        spoken: the first codes an utterance has had, bool [S, V].
        first, rest: how a frame's first code and its other fifteen are drawn.
        penalty: on codes already spoken, [S, 1].
    """

    def __init__(self, config: TalkerConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        steps = config.num_code_groups - 1
        first_vocab, rest_vocab = config.vocab_size, config.code_predictor_config.vocab_size
        self.staged = torch.zeros(3, slots, dtype=torch.int64, device=device)
        self.position, self.text, self.num_frames = self.staged.unbind()
        self.noise = torch.ones(slots, first_vocab + steps * rest_vocab, device=device)
        self.first_noise = self.noise[:, :first_vocab]
        self.rest_noise = self.noise[:, first_vocab:].unflatten(1, (steps, rest_vocab))
        self.hidden = torch.zeros(slots, config.hidden_size, dtype=dtype, device=device)
        self.next_input = torch.zeros_like(self.hidden)
        self.spoken = torch.zeros(slots, first_vocab, dtype=torch.bool, device=device)
        self.codes = torch.zeros(slots, config.num_code_groups, dtype=torch.int64, device=device)
        self.first = RowSampling.of([GREEDY] * slots, first_vocab, device)
        self.rest = RowSampling.of([GREEDY] * slots, rest_vocab, device)
        self.penalty = torch.ones(slots, 1, device=device)

    def move(self, source: int, target: int) -> None:
        """What a slot has and the host does not: the rest is staged anew."""
        for state in (self.next_input, self.spoken):
            state[target] = state[source]


@dataclass(frozen=True)
class FrameKind:
    """How the rows of a batch draw a frame's first code and the other fifteen."""

    first: DrawKind
    rest: DrawKind

    def covers(self, other: FrameKind) -> bool:
        return self.first.covers(other.first) and self.rest.covers(other.rest)
