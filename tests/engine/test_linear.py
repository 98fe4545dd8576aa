"""Products with weights laid out in advance are the products they replace."""

import pytest
import torch
import torch.nn.functional as F

from qwen3_tts_engine.model.linear import Int8Linear, Linear

SMALL, LARGE = (96, 64), (768, 512)  # outputs, inputs; only the large one is worth laying out


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 17])
def test_a_product_is_pytorchs(shape: tuple[int, int], rows: int) -> None:
    weight, bias, x = random(*shape), random(shape[0], seed=1), random(rows, 1, shape[1], seed=2)
    torch.testing.assert_close(Linear(weight, bias)(x), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("product", [Linear, Int8Linear])
def test_a_row_of_a_large_product_does_not_depend_on_its_company(product: type[Linear]) -> None:
    linear = product(random(*LARGE))
    rows = random(8, LARGE[1]) * torch.logspace(-3, 3, 8)[:, None]  # a loud row must not drown a quiet one
    together = linear(rows)
    for row, result in zip(rows, together, strict=True):
        assert torch.equal(linear(row[None])[0], result)


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
    assert (near.float() - exact).norm() / exact.norm() < 0.02


def test_int8_survives_rows_and_weights_of_zeros() -> None:
    weight = random(*LARGE)
    weight[3] = 0
    linear = Int8Linear(weight)
    assert linear(torch.zeros(1, LARGE[1])).abs().max() == 0
    assert linear(random(1, LARGE[1]))[0, 3] == 0
