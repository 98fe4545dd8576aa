"""The codec's convolutions are PyTorch's, whichever way they are computed, fed in pieces."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.codec_decoder import WIDE, BlankHistory, CausalConv, CausalUpsample, History

NARROW = 8
PIECES = (1, 2, 5)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def in_pieces(layer: CausalConv | CausalUpsample, x: Tensor) -> Tensor:
    """Every piece with the history that those before it left: x [B, T, C] -> [B, T', C']."""
    history: History = BlankHistory()
    heard = []
    for piece in x.split(PIECES, dim=1):
        heard.append(layer(piece, history))
        history = History(history.updated)
    return torch.cat(heard, 1)


@pytest.mark.parametrize("channels", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (7, 3)])
def test_a_causal_convolution_is_one_over_zeros_and_the_past(
    channels: int, kernel: int, dilation: int
) -> None:
    weight, bias = random(5, channels, kernel), random(5, seed=1)
    x = random(2, sum(PIECES), channels, seed=2)
    padded = F.pad(x.transpose(1, 2), ((kernel - 1) * dilation, 0))
    expected = F.conv1d(padded, weight, bias, dilation=dilation).transpose(1, 2)
    heard = in_pieces(CausalConv(weight, bias, dilation), x)
    torch.testing.assert_close(heard, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("taps", [1, 2])
def test_an_upsampling_is_the_transposed_convolution_without_its_tail(channels: int, taps: int) -> None:
    stride, length = 3, sum(PIECES)
    weight, bias = random(channels, 5, taps * stride), random(5, seed=1)
    x = random(2, length, channels, seed=2)
    expected = F.conv_transpose1d(x.transpose(1, 2), weight, bias, stride=stride)[..., : length * stride]
    heard = in_pieces(CausalUpsample(weight, bias, stride), x)
    torch.testing.assert_close(heard, expected.transpose(1, 2), rtol=1e-4, atol=1e-4)
