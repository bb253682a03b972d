"""Fine stages, two or three, on visible blocks alone: equal to the dense form where they share, to
MONAI's stages block by block everywhere, and blind to what is hidden.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from test_encoder import image, monai_twin, seeded, small
from torch import Tensor

from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.encoder.visible import Visible, coarse_tokens, mask_at_stride
from nnssl.views.masking import all_but, draw_masks, draw_visible

pytestmark = pytest.mark.usefixtures("one_thread")


def masked_encoder(config: SwinConfig, stride: int = 8) -> Swin:
    encoder = seeded(config)
    mask_at_stride(encoder, stride)
    torch.nn.init.normal_(encoder.mask_token, std=0.5)
    return encoder.double()


def projection(maps: list[Tensor]) -> Tensor:
    """A fixed random sum of maps."""
    generator = torch.Generator().manual_seed(2)
    return sum((m * torch.randn(m.shape, generator=generator)).sum() for m in maps)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp(min=1e-9)
        assert (got[name] - gradient).abs().max() / scale < 1e-9, name


def everything(batch: int, shape: tuple[int, ...], side: tuple[int, ...]) -> Visible:
    count = 1
    for size, n in zip(shape, side, strict=True):
        count *= size // n
    return Visible(torch.arange(count).expand(batch, -1), side)


# --- what it shares with the dense form ----------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "depths", "shape", "side"),
    [
        (8, (2, 3, 2, 1), (32, 16, 16), (32, 16, 16)),  # one block: all that the dense form does
        (8, (1, 1, 2, 2), (32, 16, 48), (16, 16, 16)),  # whole windows, none of them shifted
        (8, (2, 2, 2, 1), (64, 32), (64, 32)),
        (8, (1, 1, 2, 2), (64, 32), (32, 16)),
        (16, (2, 2, 3, 2), (32, 16, 16), (32, 16, 16)),
        (16, (2, 2, 2, 1), (64, 32), (64, 32)),
        (16, (1, 1, 1, 2), (128, 64), (64, 32)),
    ],
)
def test_with_nothing_hidden_it_is_the_dense_form(stride, depths, shape, side) -> None:
    encoder = masked_encoder(small(depths=depths, spatial_dims=len(shape)), stride)
    first = {8: 2, 16: 3}[stride]
    x = image(encoder.config, shape).double()
    dense = encoder(x)
    projection(dense[first:]).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    maps = encoder(x, everything(2, shape, side))
    assert maps[:first] == [None] * first
    for ours, theirs in zip(maps[first:], dense[first:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    projection(maps[first:]).backward()
    assert_same_gradients(gradients(encoder), expected)


def test_shifted_windows_end_at_the_block() -> None:
    """Which the dense form's do not: with two layers per stage the two differ."""
    encoder = masked_encoder(small()).eval()
    x = image(encoder.config, (32, 16, 16)).double()
    one, two = (encoder(x, everything(2, (32, 16, 16), (n, 16, 16)))[2] for n in (32, 16))
    assert not torch.allclose(one, two)


# --- a loop over blocks as the oracle ------------------------------------------------------------


def by_loop(twin: SwinTransformer, token: Tensor, x: Tensor, visible: Visible) -> list[Tensor]:
    """MONAI's stages on one visible block after the other, and the others on what they give.

    Two stages before `token`, or three, by its width. The maps before the merges of the others, and
    the last one, not normalised.
    """
    layers = [twin.layers1[0], twin.layers2[0], twin.layers3[0], twin.layers4[0]]
    first = 2 if len(token) == layers[2].blocks[0].norm1.normalized_shape[0] else 3
    stride = 2 ** (1 + first)
    grid = [size // stride for size in x.shape[2:]]
    tokens = token.view(1, -1, 1, 1, 1).expand(len(x), -1, *grid).clone()
    blocks = list(
        itertools.product(*(range(s // n) for s, n in zip(x.shape[2:], visible.side, strict=True)))
    )
    for sample, numbers in enumerate(visible.blocks.tolist()):
        for position in (blocks[number] for number in numbers):
            voxels = [slice(p * n, p * n + n) for p, n in zip(position, visible.side, strict=True)]
            part = twin.patch_embed(x[(slice(sample, sample + 1), slice(None), *voxels)])
            for layer in layers[:first]:
                part = layer(part)
            cells = [
                slice(p * n // stride, (p + 1) * n // stride)
                for p, n in zip(position, visible.side, strict=True)
            ]
            tokens[(sample, slice(None), *cells)] = part[0]
    before = []
    hooks = [
        layer.downsample.register_forward_pre_hook(lambda _, args: before.append(args[0]))
        for layer in layers[first:]
    ]
    for layer in layers[first:]:
        tokens = layer(tokens)
    for hook in hooks:
        hook.remove()
    return [b.movedim(-1, 1) for b in before] + [tokens]


def normalised(x: Tensor) -> Tensor:
    """Layer norm over channels, without affine."""
    x = x - x.mean(dim=1, keepdim=True)
    return x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("stride", "shape", "side", "blocks"),
    [
        (8, (32, 32, 16), (16, 16, 16), [[0, 3], [1, 2]]),
        (8, (32, 32, 32), (32, 16, 16), [[0], [3]]),  # windows shifted in both stages
        (8, (32, 32, 32), (16, 32, 16), [[3, 1], [2, 0]]),  # in any order
        (16, (32, 32, 16), (16, 16, 16), [[0, 3], [1, 2]]),
        (16, (32, 32, 64), (16, 32, 32), [[3, 1], [2, 0]]),
    ],
)
def test_it_is_monais_stages_block_by_block(stride, shape, side, blocks) -> None:
    encoder = masked_encoder(small(windows="monai"), stride)
    first = {8: 2, 16: 3}[stride]
    twin = monai_twin(seeded(encoder.config)).double()
    x = image(encoder.config, shape).double()
    visible = Visible(torch.tensor(blocks), side)
    token = encoder.mask_token.detach().clone().requires_grad_()
    wanted = [normalised(m) for m in by_loop(twin, token, x, visible)]
    maps = encoder(x, visible)[first:]
    for ours, theirs in zip(maps, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    projection(maps).backward()
    projection(wanted).backward()
    assert_same_gradients(gradients(encoder), gradients(twin) | {"mask_token": token.grad})


@pytest.mark.parametrize("side", [(8, 8, 8), (16, 8, 8)])
def test_blocks_shorter_than_two_windows_stand_for_themselves(side) -> None:
    """Clipped windows: each visible token behind stage 2 is that of its block seen alone."""
    encoder = masked_encoder(small())
    x = image(encoder.config, (16, 16, 16)).double()
    alone = Visible(torch.zeros(2, 1, dtype=torch.long), side)
    corner = x[:, :, : side[0], : side[1], : side[2]]
    expected = coarse_tokens(encoder, corner, alone)
    got = coarse_tokens(encoder, x, Visible(torch.tensor([[0, 1], [0, 2]]), side))
    torch.testing.assert_close(got[:, : side[0] // 8, :1, :1], expected, rtol=1e-12, atol=1e-12)


def test_it_is_one_graph_for_a_compiler() -> None:
    encoder = masked_encoder(small(depths=(1, 1, 1, 1)))
    x = image(encoder.config, (16, 16, 16)).double()
    visible = Visible(torch.tensor([[0, 1], [0, 2]]), (16, 8, 8))
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    for ours, theirs in zip(compiled(x, visible)[2:], encoder(x, visible)[2:], strict=True):
        torch.testing.assert_close(ours, theirs)


# --- what is hidden ------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "first"), [(8, 2), (16, 3)])
def test_no_map_depends_on_what_is_hidden(stride: int, first: int) -> None:
    encoder = masked_encoder(small(), stride)
    x = image(encoder.config, (32, 32, 16)).double().requires_grad_()
    visible = Visible(torch.tensor([[0, 3], [1, 2]]), (16, 16, 16))
    projection(encoder(x, visible)[first:]).backward()
    hidden = all_but(visible.blocks, (2, 2, 1))
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(16, axis)
    assert float(x.grad[:, 0][hidden].abs().max()) == 0
    assert float(x.grad[:, 0][~hidden].abs().min()) > 0


@pytest.mark.parametrize(
    ("stride", "blocks", "side", "message"),
    [
        (8, [[0]], (12, 16, 16), r"multiples of \(8, 8, 8\) voxels and divide the image"),
        (16, [[0]], (8, 16, 16), r"multiples of \(16, 16, 16\) voxels and divide the image"),
        (8, [[0]], (16, 16, 64), "divide the image"),
        (8, [[0]], (16, 16), "must have sides"),
        (8, [[0], [1], [2]], (16, 16, 16), r"must be int64 \[1 m\]"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(stride, blocks, side, message) -> None:
    encoder = masked_encoder(small(), stride)
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(1, 1, 32, 32, 32).double(), Visible(torch.tensor(blocks), side))


def test_each_mask_token_takes_its_own_kind_of_mask() -> None:
    x, blocks = (
        torch.zeros(1, 1, 16, 16, 16),
        Visible(torch.zeros(1, 1, dtype=torch.long), (8,) * 3),
    )
    with pytest.raises(ValueError, match="no mask token of stride 8 or 16"):
        Swin(small(), maskable=True)(x, blocks)
    for stride in (8, 16):
        late = Swin(small(), maskable=True)
        mask_at_stride(late, stride)
        with pytest.raises(ValueError, match=f"enters at stride {stride}; give it Visible blocks"):
            late(x, torch.zeros(1, 8, 8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"enter at stride 8 or 16 .*got 32"):
        mask_at_stride(Swin(small(), maskable=True), 32)
    with pytest.raises(ValueError, match='need an encoder of taps "stage"'):
        mask_at_stride(Swin(small(taps="merge"), maskable=True), 8)


# --- which blocks are computed -------------------------------------------------------------------


@pytest.mark.parametrize("air", [False, True])
@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.75])
def test_blocks_are_of_a_fixed_number_anatomy_first_and_never_hidden(air: bool, ratio: float):
    images = torch.randn(3, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    images[1, :, :16] = -1.8  # half of it one constant
    images[2] = -1.8
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    block = (16, 8, 8)
    masked = draw_masks(images, block, ratio, air, generators)
    visible = draw_visible(masked, images, block, ratio, generators)
    assert visible.shape == (3, int(32 * (1 - ratio)))
    assert bool((visible.diff(dim=1) > 0).all())
    flat = masked.flatten(1)
    assert not bool(flat.gather(1, visible).any())
    if air:
        assert torch.equal(all_but(visible, (2, 4, 4)), masked)
    else:  # of the second image, all blocks that show anatomy and are not hidden
        left = (~flat[1, 16:]).nonzero()[:, 0] + 16
        assert set(left.tolist()) <= set(visible[1].tolist())
