"""The kernel that others are held against multiplies, too."""

import pytest
import torch

from products import INPUTS, OUTPUTS, ROWS, num_bytes, own_kernel


@pytest.mark.parametrize("rows", ROWS)
def test_the_own_kernel_is_the_product(rows: int) -> None:
    multiply = own_kernel(rows)
    if multiply is None:
        pytest.skip("there is no g++, or the processor has no AVX512-BF16")
    weight, x = torch.randn(OUTPUTS, INPUTS).bfloat16(), torch.randn(rows, INPUTS).bfloat16()
    torch.testing.assert_close(multiply(weight, x), x.float() @ weight.float().T, rtol=1e-4, atol=1e-3)


def test_int8_weights_are_half_the_bytes() -> None:
    assert 2 * num_bytes("int8") == num_bytes("F.linear")
