"""Sparse convolution and its maps: equal to a dense convolution on a masked image, sites by definition, gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from crispseg.sparse import conv  # noqa: E402
from crispseg.sparse.conv import flipped, quantised_conv2d, sparse_conv2d  # noqa: E402
from crispseg.sparse.maps import coarser, coords_of, down_map, pyramid, submanifold_map, transpose_map  # noqa: E402

torch.set_num_threads(1)


@st.composite
def masks(draw):
    """Boolean masks of odd and even sizes, from empty to full, with blocks or single pixels."""
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 13)), draw(st.integers(1, 13))
    share = draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return torch.rand(batch, height, width, generator=generator) < share


def dense(rows, coords, batch, size):
    """Rows [N, C] at their sites in a zero image [B, C, H, W]."""
    image = rows.new_zeros(batch, rows.shape[1], *size)
    b, y, x = coords.unbind(1)
    image[b, :, y, x] = rows
    return image


def read(image, coords):
    b, y, x = coords.unbind(1)
    return image[b, :, y, x]


def dense_kernel(weight):
    """[9, Cin, Cout] with k = ky + 3 * kx -> [Cout, Cin, 3, 3] indexed by (ky, kx)."""
    return weight.view(3, 3, *weight.shape[1:]).permute(3, 2, 1, 0)


def sites_by_definition(mask, extent):
    """Sites of the next level, straight from the text of the contract."""
    active = {tuple(site) for site in mask.nonzero().tolist()}
    if not active:
        return []
    bound = []
    for axis in (1, 2):
        largest = max(site[axis] for site in active)
        bound.append((largest - 2) // 2 if extent == "active" else (mask.shape[axis] - 3) // 2)
    return [
        [b, oy, ox]
        for b in range(mask.shape[0])
        for oy in range(bound[0] + 1)
        for ox in range(bound[1] + 1)
        if any((b, 2 * oy + ky, 2 * ox + kx) in active for ky in range(3) for kx in range(3))
    ]


@settings(max_examples=60, deadline=None)
@given(masks(), st.sampled_from(["active", "image"]))
@example(torch.ones(1, 2, 2, dtype=torch.bool), "image")
def test_sites_follow_the_definition(mask, extent):
    sites, down, up = down_map(coords_of(mask), tuple(mask.shape[1:]), extent)
    assert sites.tolist() == sites_by_definition(mask, extent)
    assert down.shape == (len(sites), 9)
    assert up.shape == (int(mask.sum()), 9)
    assert torch.equal(transpose_map(down, up.shape[0]), up)
    assert torch.equal(transpose_map(up, down.shape[0]), down)


@settings(max_examples=60, deadline=None)
@given(masks(), st.sampled_from([0.0, 0.3, 2.0]))
def test_equals_dense_convolution(mask, sparse_below):
    """All three kinds, with the path by blocks, the path by taps, and the choice between them."""
    batch, size = mask.shape[0], tuple(mask.shape[1:])
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(9, 3, 4, generator=generator, dtype=torch.float64)
    fine, coarse = pyramid(coords_of(mask), size, 2)
    x = torch.randn(len(fine.coords), 3, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "_SPARSE_BELOW", sparse_below)
        patch.setattr(conv, "_BLOCK_VALUES", 1)
        same = sparse_conv2d(x, fine.same, weight)
        down = sparse_conv2d(x, fine.down, weight)
        y = torch.randn(len(coarse.coords), 3, generator=generator, dtype=torch.float64)
        up = sparse_conv2d(y, fine.up, weight)
    kernel = dense_kernel(weight)
    image = dense(x, fine.coords, batch, size)
    torch.testing.assert_close(same, read(F.conv2d(image, kernel, padding=1), fine.coords))
    if len(coarse.coords):
        torch.testing.assert_close(down, read(F.conv2d(image, kernel, stride=2), coarse.coords))
        grown = F.conv_transpose2d(dense(y, coarse.coords, batch, coarser(size)), kernel.transpose(0, 1), stride=2)
        grown = F.pad(grown, (0, 1, 0, 1))
        torch.testing.assert_close(up, read(grown, fine.coords))
    else:
        assert down.shape == (0, 4)
        assert not up.any()


@pytest.mark.parametrize("sparse_below", [0.0, 2.0])
@pytest.mark.parametrize("kind", ["same", "down", "up"])
@pytest.mark.parametrize("known", [True, False])
def test_gradients(monkeypatch, sparse_below, kind, known):
    monkeypatch.setattr(conv, "_SPARSE_BELOW", sparse_below)
    monkeypatch.setattr(conv, "_BLOCK_VALUES", 1)
    torch.manual_seed(0)
    fine, coarse = pyramid(coords_of(torch.rand(2, 7, 8) < 0.5), (7, 8), 2)
    inputs = len(coarse.coords if kind == "up" else fine.coords)
    kernel_map = getattr(fine, kind)
    back = {"same": flipped(fine.same), "down": fine.up, "up": fine.down}[kind] if known else None
    x = torch.randn(inputs, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: sparse_conv2d(a, kernel_map, w, back), (x, weight))


def test_blocks_do_not_change_the_result(monkeypatch):
    torch.manual_seed(0)
    coords = coords_of(torch.rand(1, 40, 50) < 0.6)
    kernel_map = submanifold_map(coords, (40, 50))
    x, weight = torch.randn(len(coords), 8), torch.randn(9, 8, 5)
    whole = sparse_conv2d(x, kernel_map, weight)
    monkeypatch.setattr(conv, "_BLOCK_VALUES", 1)
    torch.testing.assert_close(sparse_conv2d(x, kernel_map, weight), whole, rtol=1e-5, atol=1e-5)


def test_image_order_and_dtype_of_coords_do_not_matter_to_maps():
    coords = coords_of(torch.rand(1, 9, 9) < 0.5)
    for dtype in (torch.int16, torch.int32):
        assert torch.equal(submanifold_map(coords.to(dtype), (9, 9)), submanifold_map(coords, (9, 9)))
        for a, b in zip(down_map(coords.to(dtype), (9, 9)), down_map(coords, (9, 9))):
            assert torch.equal(a, b)


def test_the_bound_is_over_the_whole_batch():
    mask = torch.zeros(2, 12, 12, dtype=torch.bool)
    mask[0, 0:4, 0:4] = True
    alone = down_map(coords_of(mask), (12, 12))[0]
    mask[1, 11, 11] = True
    together = down_map(coords_of(mask), (12, 12))[0]
    assert len(together[together[:, 0] == 0]) == 4 > len(alone) == 1
    assert alone.tolist() == [[0, 0, 0]]


def test_bad_input_is_refused():
    coords = torch.tensor([[0, 1, 1], [0, 5, 2]])
    with pytest.raises(ValueError, match="inside 5x5"):
        submanifold_map(coords, (5, 5))
    with pytest.raises(ValueError, match="coords"):
        submanifold_map(coords.float(), (9, 9))
    with pytest.raises(ValueError, match="extent"):
        down_map(coords, (9, 9), "frame")
    with pytest.raises(ValueError, match="mask"):
        coords_of(torch.ones(3, 3))
    kernel_map = submanifold_map(coords, (9, 9))
    with pytest.raises(ValueError, match="channels"):
        sparse_conv2d(torch.ones(2, 3), kernel_map, torch.ones(9, 4, 5))
    with pytest.raises(ValueError, match="expected x"):
        sparse_conv2d(torch.ones(2, 3), kernel_map.int(), torch.ones(9, 3, 5))
    with pytest.raises(ValueError, match="transposed"):
        sparse_conv2d(torch.ones(2, 3), kernel_map, torch.ones(9, 3, 5), kernel_map[:1])
    with pytest.raises(ValueError, match="not a convolution"):
        transpose_map(torch.zeros(2, 1, dtype=torch.long), 1)


def test_int8_sums_are_exact_and_rounded_to_even():
    """Integers past 2^24, ties, both ends of the range, and a missing neighbour."""
    x = torch.tensor([[0.25, -0.75, 100.0, -100.0], [0.75, 1.25, -0.25, 0.0]])  # / 0.5: ties at .5
    kernel_map = torch.tensor([[0, 1], [1, -1], [-1, -1]])
    weight = torch.tensor([[1, 2, 3, 4], [-127, 5, 6, 7]], dtype=torch.int8)[..., None].repeat(1, 1, 2)
    y = quantised_conv2d(x, kernel_map, weight, torch.tensor([1.0, 0.5]), 0.5)
    first = 0 * 1 - 2 * 2 + 127 * 3 - 127 * 4 + (-127 * 2 + 5 * 2 + 6 * 0)
    second = 2 * 1 + 2 * 2 - 0 + 0
    assert y.tolist() == [[first * 0.5, first * 0.25], [second * 0.5, second * 0.25], [0, 0]]
    long = torch.full((1, 4096), 1e9)
    weight = torch.full((1, 4096, 1), 127, dtype=torch.int8)
    weight[0, 0] = 126
    y = quantised_conv2d(long, torch.tensor([[0]]), weight, torch.ones(1), 1.0)
    assert y.item() == float(torch.tensor(4096 * 127 * 127 - 127, dtype=torch.float64).float())
    for bad in ({"x_scale": 0.0}, {"weight": weight.float()}, {"w_scale": torch.ones(2)}):
        arguments = {"weight": weight, "w_scale": torch.ones(1), "x_scale": 1.0, **bad}
        with pytest.raises(ValueError, match="quantised_conv2d"):
            quantised_conv2d(long, torch.tensor([[0]]), **arguments)
