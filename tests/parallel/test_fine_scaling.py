"""8-bit floats with a scale a row or a block, against their definitions, and the linear layers that they make up."""

import math

import pytest
import torch
from torch import Tensor, nn

from sslm.models.blocks import blocks
from sslm.parallel.fine_scaling import BLOCK, LARGEST, by_row, in_blocks, in_tiles, product
from sslm.parallel.float8 import in_8_bits, suits_float8, use_float8
from sslm.parallel.launch import Scaling
from sslm.parallel.parallelize import parallelize
from tests.parallel.test_float8 import BACKWARD_ERROR, error, pair, results, tiny_llama


@pytest.mark.parametrize("size", [1.0, 448.0, 3e-20, 1e20])
def test_a_block_shares_the_smallest_power_of_two_that_holds_its_largest(size: float) -> None:
    matrix = torch.randn(5, 3 * BLOCK) * size
    matrix[0, :BLOCK] = size  # one number only, 448 is exact
    found = in_blocks(matrix)
    for row, numbers in enumerate(matrix.view(5, 3, BLOCK).tolist()):
        for place, block in enumerate(numbers):
            scale = 2.0 ** math.ceil(math.log2(max(map(abs, block)) / LARGEST))
            assert found.scales[row, place].float().item() == scale
            exact = torch.tensor(block, dtype=torch.float64) / scale
            expected = exact.clamp(-LARGEST, LARGEST).float().to(torch.float8_e4m3fn)
            values = found.values[row, place * BLOCK : (place + 1) * BLOCK]
            assert torch.equal(values.float(), expected.float())
    assert error(found.wide(), matrix) < 0.035


def test_zeros_stay_and_what_is_no_number_stays_seen() -> None:
    matrix = torch.zeros(2, 2 * BLOCK)
    for scaled in (by_row, in_blocks):
        assert torch.equal(scaled(matrix).wide(), matrix)
    for bad in (math.inf, math.nan):
        matrix[1, 3] = bad
        for scaled in (by_row, in_blocks):
            wide = scaled(matrix).wide()
            assert wide[0].isfinite().all()
            assert not wide[1, 3].isfinite()


def test_rows_and_blocks_do_not_lose_precision_by_a_number_far_from_them() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 4 * BLOCK)
    matrix[0, 0] = 1e7
    rows, shared = by_row(matrix).wide(), in_blocks(matrix).wide()
    assert error(rows[1:], matrix[1:]) < 0.03
    assert error(rows[0, 1:], matrix[0, 1:]) == 1.0  # all that shares its scale is zero
    assert error(shared[0, BLOCK:], matrix[0, BLOCK:]) < 0.035


def test_scales_stand_where_cublas_reads_them() -> None:
    rows, columns = 130, 5
    scales = torch.arange(rows * columns).remainder(251).to(torch.uint8).view(rows, columns)
    found = in_tiles(scales.view(torch.float8_e8m0fnu)).view(torch.uint8)
    assert len(found) == 256 * 8
    for row in range(rows):
        for column in range(columns):
            tile, inside = row // 128 * 2 + column // 4, (row % 32) * 16 + row % 128 // 32 * 4 + column % 4
            assert found[512 * tile + inside] == scales[row, column]
    assert int(found.long().sum()) == int(scales.long().sum())  # nothing else


def test_a_product_is_that_of_the_rounded_matrices() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(7, 64), torch.randn(16, 64)
    for scaled in (by_row, in_blocks):
        found = product(scaled(a), scaled(b))
        exact = scaled(a).wide().double() @ scaled(b).wide().double().t()
        assert found.dtype == torch.bfloat16
        assert error(found, exact) < 0.003


@pytest.mark.parametrize("scaling", ["row", "block"])
@pytest.mark.parametrize("shape", [(32, 64), (3, 7, 64), (64,)])
@pytest.mark.parametrize("mixed", [False, True])
def test_layers_have_the_results_of_32_bits_up_to_the_rounding_of_8(
    scaling: Scaling, shape: tuple[int, ...], mixed: bool
) -> None:
    exact, rough = pair(scaling=scaling, num_out=96)
    inputs, gradient = torch.randn(shape), torch.randn(*shape[:-1], 96)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = results(rough, inputs, gradient)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16 if mixed else torch.float32, *3 * [torch.float32]]
    assert error(found[0], exact(inputs)) > 0.001
    for one, other in zip(found, results(exact, inputs, gradient), strict=True):
        assert error(one, other) < 0.055


def test_layers_whose_sides_are_no_whole_blocks_stay() -> None:
    assert suits_float8(nn.Linear(64, 48), "row")
    assert not suits_float8(nn.Linear(64, 48), "block")


def gradients(scaling: Scaling | None) -> Tensor:
    model, ids = tiny_llama(layers=3, intermediate_size=64), torch.arange(32).reshape(2, 16)
    parallelize(model, model, None, float8=scaling)
    with torch.autocast("cpu", torch.bfloat16, enabled=scaling is not None):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("scaling", ["tensor", "row", "block"])
def test_first_and_last_block_stay_and_gradients_are_close(scaling: Scaling) -> None:
    model = tiny_llama(layers=3, intermediate_size=64)
    parallelize(model, model, None, float8=scaling)
    assert [use_float8(block, scaling) for block in blocks(model)] == [7, 0, 7]
    assert len(in_8_bits(blocks(model)[:2])) == 2  # a small model has no others
    assert 0.001 < error(gradients(scaling), gradients(None)) < BACKWARD_ERROR
