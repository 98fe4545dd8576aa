"""Products with weights laid out in advance are the products they replace."""

import pytest
import torch
import torch.nn.functional as F

from qwen3_tts_engine.model import linear
from qwen3_tts_engine.model.linear import Int8Linear, Linear, can_be_packed
from qwen3_tts_engine.model.steady import SteadyLinear

SMALL, LARGE = (96, 64), (768, 512)  # outputs, inputs; only the large one is worth laying out


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 17])
def test_a_product_is_pytorchs(shape: tuple[int, int], rows: int) -> None:
    weight, bias, x = random(*shape), random(shape[0], seed=1), random(rows, 1, shape[1], seed=2)
    torch.testing.assert_close(Linear(weight, bias)(x), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("product", [Linear, SteadyLinear])
def test_a_processor_for_which_onednn_has_no_bfloat16_multiplies_without_it(
    product: type[Linear], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "onednn_has_bfloat16", lambda: False)
    weight, x = random(*LARGE).to(dtype), random(1, 3, LARGE[1]).to(dtype)
    assert can_be_packed(weight) == (dtype == torch.float32)
    torch.testing.assert_close(product(weight)(x), F.linear(x, weight), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("product", [Linear, Int8Linear])
def test_a_row_of_a_large_product_does_not_depend_on_its_company(product: type[Linear]) -> None:
    large = product(random(*LARGE))
    rows = random(8, LARGE[1]) * torch.logspace(-3, 3, 8)[:, None]  # a loud row must not drown a quiet one
    together = large(rows)
    for row, result in zip(rows, together, strict=True):
        assert torch.equal(large(row[None])[0], result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_near_the_exact_product_and_keeps_type_and_shape(dtype: torch.dtype) -> None:
    weight, bias, x = (
        random(*LARGE).to(dtype),
        random(LARGE[0], seed=1).to(dtype),
        random(3, 2, LARGE[1], seed=2),
    )
    exact = F.linear(x, weight.float(), bias.float())
    near = Int8Linear(weight, bias)(x.to(dtype))
    assert near.dtype == dtype
    assert near.shape == exact.shape
    assert (near.float() - exact).norm() / exact.norm() < 0.03  # 8 bits, on some processors 7


def test_int8_survives_rows_and_weights_of_zeros() -> None:
    weight = random(*LARGE)
    weight[3] = 0
    of_zeros = Int8Linear(weight)
    assert of_zeros(torch.zeros(1, LARGE[1])).abs().max() == 0
    assert of_zeros(random(1, LARGE[1]))[0, 3] == 0
