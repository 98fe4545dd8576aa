"""The 12 Hz speech tokenizer's decoder: frames of codes to samples, a few frames at a time, exactly.

Everything in it is causal, so what a call needs from the past is a fixed number of its last inputs: the
history of each convolution, one input of each transposed convolution, the window of each attention layer.
Kept between calls, that state makes the concatenated chunks equal the decode of all frames at once; with the
kernels of `steady.py`, to the last bit.

Shapes: B rows, N frames, T positions, C channels, always in this order. Source of the layers:
`modeling_qwen3_tts_tokenizer_v2.py` of qwen-tts 0.1.1 (Qwen3TTSTokenizerV2Decoder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import CodecConfig
from qwen3_tts_engine.model.layers import FeedForward, inverse_frequencies, rms_norm, rotate
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.model.native.snake import NativeSnake
from qwen3_tts_engine.model.steady import (
    Convolution,
    SteadyLinear,
    steady_attention,
    steady_convolution,
    steady_span,
)

WIDE = 384  # channels from which on a convolution is a product; measured on two cores at chunks of 1 to 12
CONVOLUTIONS_SEE = 16  # frames; measured: 11 are too few, from 12 on the result is exact
REMEMBERED_AT_ONCE = [2**i for i in range(8)]  # frames of a reference; few shapes, as in codec_stream


class History:
    """The past of B rows: one tensor for every layer that looks back, visited in the order of the layers.

    Zeros are the past of a row that has none: convolutions pad with them, attention masks them by position.
    """

    def __init__(self, past: list[Tensor]) -> None:
        self._past = iter(past)
        self.updated: list[Tensor] = []

    def extend(self, x: Tensor, length: int, axis: int = 1) -> Tensor:
        """x with the `length` positions before it in front; its own last ones become the next call's past."""
        whole = torch.cat([self._recall(x, length, axis), x], axis)
        self.updated.append(whole.narrow(axis, whole.shape[axis] - length, length))
        return whole

    def _recall(self, x: Tensor, length: int, axis: int) -> Tensor:
        return next(self._past)


class BlankHistory(History):
    """Starts every layer from zeros, and so finds out which shapes a history has."""

    def __init__(self) -> None:
        super().__init__([])

    def _recall(self, x: Tensor, length: int, axis: int) -> Tensor:
        shape = list(x.shape)
        shape[axis] = length
        return x.new_zeros(shape)


class CausalConv:
    """A convolution over time that sees only the past: [B, T, C] -> [B, T, C'].

    A wide one, and one of a single tap, is a product with the inputs of its kernel side by side.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1, groups: int = 1) -> None:
        self._reach = (weight.shape[-1] - 1) * dilation
        is_product = groups == 1 and (weight.shape[1] >= WIDE or weight.shape[-1] == 1)
        self._convolve = (
            _product(weight, bias, dilation)
            if is_product
            else steady_convolution(weight, bias, dilation, groups)
        )

    @classmethod
    def load(cls, weights: Weights, dilation: int = 1, groups: int = 1) -> CausalConv:
        return cls(weights.take("conv.weight"), weights.take("conv.bias"), dilation, groups)

    def __call__(self, x: Tensor, history: History) -> Tensor:
        return self._convolve(history.extend(x, self._reach) if self._reach else x)


def _product(weight: Tensor, bias: Tensor, dilation: int) -> Convolution:
    kernel = weight.shape[-1]
    linear = SteadyLinear(weight.transpose(1, 2).flatten(1), bias)  # [C', kernel·C]
    if kernel == 1:
        return linear

    def convolve(x: Tensor) -> Tensor:
        length = x.shape[1] - (kernel - 1) * dilation
        return linear(torch.cat([x.narrow(1, k * dilation, length) for k in range(kernel)], -1))

    return convolve


class CausalUpsample:
    """A transposed convolution: [B, T, C] -> [B, T·stride, C'].

    With a kernel of twice the stride an output mixes its own input with the one before, with a kernel of one
    stride it has only its own: so it is a convolution with a kernel of 2 or 1 that makes all `stride` outputs
    of a position at once.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int) -> None:
        self._stride = stride
        taps = weight.unflatten(-1, (-1, stride)).flip(2)  # [C, C', 1 or 2, stride], the oldest input first
        self._conv = CausalConv(taps.permute(3, 1, 0, 2).flatten(0, 1), bias.repeat(stride))

    @classmethod
    def load(cls, weights: Weights, stride: int) -> CausalUpsample:
        return cls(weights.take("conv.weight"), weights.take("conv.bias"), stride)

    def __call__(self, x: Tensor, history: History) -> Tensor:
        return self._conv(x, history).unflatten(-1, (self._stride, -1)).flatten(1, 2)


Snake = Callable[[Tensor], Tensor]
"""SnakeBeta, x + sin²(αx) / β: [B, T, C] -> the same."""


def load_snake(weights: Weights) -> Snake:
    """α and β are stored as logarithms."""
    alpha, beta = (weights.take(name).exp() for name in ("alpha", "beta"))
    inverse_beta = 1.0 / (beta + 1e-9)
    if NativeSnake.can_load(alpha):
        return NativeSnake(alpha, inverse_beta)
    return lambda x: torch.addcmul(x, (x * alpha).sin_().square_(), inverse_beta)


@dataclass
class WindowAttention:
    """Self-attention over the last `window` frames, at absolute positions, as wide as upstream's."""

    qkv: Linear  # D -> (H + 2K)·E
    out: Linear
    num_heads: int
    num_kv_heads: int

    @classmethod
    def load(cls, weights: Weights, config: CodecConfig) -> WindowAttention:
        qkv = SteadyLinear.load(weights, "q_proj", "k_proj", "v_proj")
        out = SteadyLinear.load(weights, "o_proj")
        return cls(qkv, out, config.num_attention_heads, config.num_key_value_heads)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, sees: Tensor, history: History) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (self.num_heads + 2 * self.num_kv_heads, -1)).transpose(1, 2)
        turning, value = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], 1)
        query, key = rotate(turning, cos, sin).split([self.num_heads, self.num_kv_heads], 1)
        span = sees.shape[-1]
        keys, values = (history.extend(new, span - 1, axis=2) for new in (key, value))
        return self.out(steady_attention(query, keys, values, sees))


@dataclass
class TransformerLayer:
    """Pre-norm attention and SwiGLU, each residual scaled per channel."""

    attention: WindowAttention
    feed_forward: FeedForward
    attention_norm: Tensor
    feed_forward_norm: Tensor
    attention_scale: Tensor
    feed_forward_scale: Tensor
    eps: float

    @classmethod
    def load(cls, weights: Weights, config: CodecConfig) -> TransformerLayer:
        return cls(
            attention=WindowAttention.load(weights.below("self_attn."), config),
            feed_forward=_feed_forward(weights.below("mlp.")),
            attention_norm=weights.take("input_layernorm.weight"),
            feed_forward_norm=weights.take("post_attention_layernorm.weight"),
            attention_scale=weights.take("self_attn_layer_scale.scale"),
            feed_forward_scale=weights.take("mlp_layer_scale.scale"),
            eps=config.rms_norm_eps,
        )

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, sees: Tensor, history: History) -> Tensor:
        attended = self.attention(rms_norm(x, self.attention_norm, self.eps), cos, sin, sees, history)
        x = x + self.attention_scale * attended
        return x + self.feed_forward_scale * self.feed_forward(rms_norm(x, self.feed_forward_norm, self.eps))


def _feed_forward(weights: Weights) -> FeedForward:
    gate_up = SteadyLinear.load(weights, "gate_proj", "up_proj")
    return FeedForward(gate_up, SteadyLinear.load(weights, "down_proj"))


class Transformer:
    """The layers that give every frame the context of the seconds before it: [B, N, latent] -> the same."""

    def __init__(self, weights: Weights, config: CodecConfig) -> None:
        self._input = SteadyLinear.load(weights, "input_proj")
        self._output = SteadyLinear.load(weights, "output_proj")
        self._layers = [
            TransformerLayer.load(weights.below(f"layers.{i}."), config)
            for i in range(config.num_hidden_layers)
        ]
        self._norm = weights.take("norm.weight")
        self._eps = config.rms_norm_eps
        self._window = config.sliding_window
        self._span = steady_span(config.sliding_window, config.head_dim)
        self._num_heads = config.num_attention_heads
        self._inverse_frequencies = inverse_frequencies(config.head_dim, config.rope_theta, self._norm.device)

    def __call__(self, x: Tensor, start: Tensor, history: History) -> Tensor:
        """start [B]: how many frames each row had before these."""
        positions = start[:, None] + torch.arange(x.shape[1], device=x.device)  # [B, N]
        cos, sin = (table.to(x.dtype) for table in self._rotation(positions))
        sees = self._sees(positions)
        x = self._input(x)
        for layer in self._layers:
            x = layer(x, cos, sin, sees, history)
        return self._output(rms_norm(x, self._norm, self._eps))

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As RotaryTable has it, but computed: an utterance has no last position here. [B, 1, N, E] each."""
        angles = positions[:, None, :, None].float() * self._inverse_frequencies
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def _sees(self, positions: Tensor) -> Tensor:
        """Which of the keys that end with a frame's own are in its window: bool [N, B·H, 1, span]."""
        distance = torch.arange(self._span - 1, -1, -1, device=positions.device)
        exists = positions.T[:, :, None] >= distance  # [N, B, span]; the others are before the beginning
        return (exists & (distance < self._window)).repeat_interleave(self._num_heads, 1)[:, :, None]


@dataclass
class ConvNeXt:
    """Depthwise convolution over time, then a feed-forward per position: [B, T, C] -> the same."""

    depthwise: CausalConv
    norm: tuple[Tensor, Tensor]  # weight, bias
    expand: Linear
    contract: Linear
    scale: Tensor

    @classmethod
    def load(cls, weights: Weights, channels: int) -> ConvNeXt:
        return cls(
            depthwise=CausalConv.load(weights.below("dwconv."), groups=channels),
            norm=(weights.take("norm.weight"), weights.take("norm.bias")),
            expand=SteadyLinear.load(weights, "pwconv1"),
            contract=SteadyLinear.load(weights, "pwconv2"),
            scale=weights.take("gamma"),
        )

    def __call__(self, x: Tensor, history: History) -> Tensor:
        y = self.depthwise(x, history)
        y = F.layer_norm(y, y.shape[-1:], *self.norm, eps=1e-6)
        y = self.contract(F.gelu(self.expand(y)))
        return x + self.scale * y


@dataclass
class ResidualUnit:
    """A dilated and a pointwise convolution with Snake in front of each."""

    wide_snake: Snake
    wide: CausalConv
    point_snake: Snake
    point: CausalConv

    @classmethod
    def load(cls, weights: Weights, dilation: int) -> ResidualUnit:
        return cls(
            wide_snake=load_snake(weights.below("act1.")),
            wide=CausalConv.load(weights.below("conv1."), dilation),
            point_snake=load_snake(weights.below("act2.")),
            point=CausalConv.load(weights.below("conv2.")),
        )

    def __call__(self, x: Tensor, history: History) -> Tensor:
        return x + self.point(self.point_snake(self.wide(self.wide_snake(x), history)), history)


@dataclass
class UpsampleBlock:
    """Snake, a transposed convolution, three residual units of growing dilation."""

    snake: Snake
    upsample: CausalUpsample
    units: list[ResidualUnit]

    @classmethod
    def load(cls, weights: Weights, stride: int) -> UpsampleBlock:
        return cls(
            snake=load_snake(weights.below("block.0.")),
            upsample=CausalUpsample.load(weights.below("block.1."), stride),
            units=[ResidualUnit.load(weights.below(f"block.{i}."), d) for i, d in ((2, 1), (3, 3), (4, 9))],
        )

    def __call__(self, x: Tensor, history: History) -> Tensor:
        x = self.upsample(self.snake(x), history)
        for unit in self.units:
            x = unit(x, history)
        return x


class CodecDecoder:
    """Codes to samples. Stateless: the past goes in and comes out."""

    def __init__(self, weights: Weights, config: CodecConfig) -> None:
        self._codebooks = _projected_codebooks(weights.below("quantizer."), config)
        self._offsets = config.codebook_size * torch.arange(
            config.num_quantizers, device=self._codebooks.device
        )
        self._pre_conv = CausalConv.load(weights.below("pre_conv."))
        self._transformer = Transformer(weights.below("pre_transformer."), config)
        self._upsample = [
            (
                CausalUpsample.load(weights.below(f"upsample.{i}.0."), ratio),
                ConvNeXt.load(weights.below(f"upsample.{i}.1."), config.latent_dim),
            )
            for i, ratio in enumerate(config.upsampling_ratios)
        ]
        last = len(config.upsample_rates) + 1
        self._first_conv = CausalConv.load(weights.below("decoder.0."))
        self._blocks = [
            UpsampleBlock.load(weights.below(f"decoder.{i}."), rate)
            for i, rate in enumerate(config.upsample_rates, 1)
        ]
        self._last_snake = load_snake(weights.below(f"decoder.{last}."))
        self._last_conv = CausalConv.load(weights.below(f"decoder.{last + 1}."))
        self._blank = self._blank_row()

    def decode(self, codes: Tensor, start: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Speak the next N frames of B rows.

        Args:
            codes: int64 [B, N, 16].
            start: int64 [B], frames each row has had before.
            past: what the previous call returned for these rows, or `blank_past`.

        Returns:
            Samples, float32 [B, N·1920], and the past of the next call.
        """
        history = History(past)
        return self._decode(codes, start, history), history.updated

    def remember(self, codes: Tensor) -> list[Tensor]:
        """The past of a row that has spoken these frames, int64 [1, N, 16], without their audio.

        Attention needs them all. Everything behind it only sees 12 frames back, so only the last ones go
        through the convolutions, which cost most.
        """
        blank = past = self.blank_past(1)
        context = []
        for part in parts(codes.shape[1], REMEMBERED_AT_ONCE):
            history = History(past)
            start = torch.full((1,), part.start, dtype=torch.int64, device=codes.device)
            context.append(self._contextualise(codes[:, part], start, history))
            past = history.updated + blank[len(history.updated) :]
        self._synthesise(torch.cat(context, 1)[:, -CONVOLUTIONS_SEE:], history)
        return history.updated

    def blank_past(self, rows: int) -> list[Tensor]:
        """The past of rows that have none."""
        return [tensor.new_zeros((rows, *tensor.shape[1:])) for tensor in self._blank]

    @torch.inference_mode()
    def _blank_row(self) -> list[Tensor]:
        """The past of one row that has none: as one frame leaves it, in zeros."""
        history, device = BlankHistory(), self._codebooks.device
        codes = torch.zeros(1, 1, len(self._offsets), dtype=torch.int64, device=device)
        self._decode(codes, torch.zeros(1, dtype=torch.int64, device=device), history)
        return [torch.zeros_like(tensor) for tensor in history.updated]

    def _decode(self, codes: Tensor, start: Tensor, history: History) -> Tensor:
        return self._synthesise(self._contextualise(codes, start, history), history)

    def _contextualise(self, codes: Tensor, start: Tensor, history: History) -> Tensor:
        """Codes [B, N, 16] -> what each frame means after those before it, [B, N, latent]."""
        x = F.embedding(codes + self._offsets, self._codebooks).sum(2)  # [B, N, codebook_dim]
        return self._transformer(self._pre_conv(x, history), start, history)

    def _synthesise(self, x: Tensor, history: History) -> Tensor:
        """[B, N, latent] -> samples [B, N·1920]"""
        for upsample, convnext in self._upsample:
            x = convnext(upsample(x, history), history)
        x = self._first_conv(x, history)
        for block in self._blocks:
            x = block(x, history)
        samples = self._last_conv(self._last_snake(x), history).squeeze(-1)
        return samples.to(torch.promote_types(samples.dtype, torch.float32)).clamp(-1, 1)


def parts(whole: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Cut a whole into parts of these sizes, ascending from 1, the largest first."""
    start = 0
    while start < whole:
        end = start + max(size for size in sizes if size <= whole - start)
        yield slice(start, end)
        start = end


def _projected_codebooks(weights: Weights, config: CodecConfig) -> Tensor:
    """All codebooks behind their output projections, one below the other: [16·V, codebook_dim].

    A residual quantizer decodes to the projected sum of its entries: the sum of the projected entries.
    """
    tables = []
    for name, layers in (("rvq_first.", 1), ("rvq_rest.", config.num_quantizers - 1)):
        part = weights.below(name)
        part.ignore("input_proj.weight")  # the encoder's direction
        project = part.take("output_proj.weight").squeeze(-1)  # [codebook_dim, codebook_dim / 2]
        for i in range(layers):
            usage = part.take(f"vq.layers.{i}._codebook.cluster_usage").clamp(min=1e-5)
            tables.append(part.take(f"vq.layers.{i}._codebook.embedding_sum") / usage[:, None] @ project.T)
    return torch.cat(tables)
