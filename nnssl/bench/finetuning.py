"""A whole fine-tuning step: the faithful network against MONAI's, the light one against nnU-Net's
default.

    python -m nnssl.bench.finetuning [--pairs faithful light] [--sizes 64 96]
        [-device cuda] [--allocator default]

A step is forward, loss, backward and AdamW, with deep supervision where both networks of a pair
have it. The rivals are as their users have them: MONAI's SwinUNETR with the same encoder, and the
PlainConvUNet that nnU-Net plans for an isotropic CT patch (6 stages of 32 to 320 channels). On a
GPU both run under bf16 autocast, compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from nnssl.bench.command_line import network_arguments, set_up
from nnssl.bench.timing import Rounds, comparison_table, peak_memory, side_by_side
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import preset
from nnssl.finetune import deep_supervision_weights, optimise, unwrap
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.recipe import Recipe

CLASSES = 6
STAGES = (32, 64, 128, 256, 320, 320)


def monai_network(config: SwinConfig) -> nn.Module:
    from monai.networks.nets import SwinUNETR as Theirs

    return Theirs(
        config.in_channels,
        CLASSES,
        feature_size=config.embed_dim,
        depths=config.depths,
        num_heads=config.heads,
        window_size=config.window,
        qkv_bias=config.qkv_bias,
        patch_norm=config.patch_norm,
    )


# of both networks of nnU-Net's, as it plans them
KERNEL, STRIDES = 3, (1, *[2] * (len(STAGES) - 1))
LAYERS: dict = {
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "deep_supervision": True,
}


def nnunet_network(config: SwinConfig) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    shape = config.in_channels, len(STAGES), STAGES, nn.Conv3d, KERNEL, STRIDES
    return PlainConvUNet(*shape, 2, CLASSES, 2, **LAYERS)


def nnunet_residual(config: SwinConfig) -> nn.Module:
    """ResEnc L as nnU-Net plans it for an isotropic CT patch."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    shape = config.in_channels, len(STAGES), STAGES, nn.Conv3d, KERNEL, STRIDES
    blocks, decoder_blocks = (1, 3, 4, 6, 6, 6), (1,) * (len(STAGES) - 1)
    return ResidualEncoderUNet(*shape, blocks, CLASSES, decoder_blocks, **LAYERS)


def our_network(config: SwinConfig, decoder: str, deep_supervision: bool) -> nn.Module:
    return SwinUNETR(
        config.in_channels, CLASSES, deep_supervision, encoder=config.to_dict(), decoder=decoder
    )


# name -> (ours: decoder and deep supervision, the rival's name, how to build it, ratio to stay
# under)
PAIRS = {
    "faithful": ("swinunetr", False, "MONAI SwinUNETR", monai_network, 0.8),
    "light": ("light", True, "nnU-Net PlainConvUNet", nnunet_network, 0.7),
}


def supervised_step(
    network: nn.Module, image: torch.Tensor, ours: bool, compiled: bool = True
) -> Callable[[], None]:
    """One training step on made labels; ours with the trainers' optimiser, the rival with PyTorch's
    AdamW.

    On a GPU in bf16, and `compiled` where wished.
    """
    cuda = image.device.type == "cuda"
    shape = (image.shape[0], 1, *image.shape[2:])
    labels = torch.randint(0, CLASSES, shape, device=image.device).float()
    optimizer = _optimizer(network, ours, image.device)
    run = torch.compile(network) if cuda and compiled else network

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=cuda):
            outputs = run(image)
        _loss(outputs, labels).backward()
        optimizer.step()

    return one


def _optimizer(network: nn.Module, ours: bool, device: torch.device) -> torch.optim.Optimizer:
    if ours:
        return optimise(unwrap(network), Recipe(), device)[0]
    return torch.optim.AdamW(network.parameters(), 1e-4)


def _loss(outputs: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The weighted cross-entropies of one output, or of those of deep supervision."""
    each = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    weights = deep_supervision_weights(len(each))
    terms = [w * _cross_entropy(o, labels) for w, o in zip(weights, each, strict=True)]
    return sum(terms[1:], terms[0])


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), F.interpolate(labels, logits.shape[2:])[:, 0].long())


def compare_pair(
    pair: str, name: str, size: int, batch: int, device: torch.device, rounds: int
) -> tuple[Rounds, str]:
    config = preset(name, drop_path=0.0)
    torch.manual_seed(0)
    image = torch.randn(batch, config.in_channels, *(size,) * 3, device=device)
    steps, rival, target = _pair_steps(pair, config, image), PAIRS[pair][2], PAIRS[pair][-1]
    costs = side_by_side(steps, rounds, warmup=1, device=device)
    memory = {label: peak_memory(one, device) for label, one in steps.items()}
    title = f"{pair}: preset {name}, {size}^3, batch {batch}; wanted: at most {target}"
    return costs, f"{title}\n{comparison_table(costs, rival, memory)}\n"


def _pair_steps(
    pair: str, config: SwinConfig, image: torch.Tensor
) -> dict[str, Callable[[], None]]:
    """A training step of each of a pair, the rival's first."""
    decoder, deep_supervision, rival, build, _ = PAIRS[pair]
    mine = our_network(config, decoder, deep_supervision).to(image.device)
    return {
        rival: supervised_step(build(config).to(image.device), image, ours=False),
        f"ours, {decoder}": supervised_step(mine, image, ours=True),
    }


def main(argv: list[str] | None = None) -> None:
    parser = network_arguments(__doc__, "patch", batch=2)
    parser.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    options = parser.parse_args(argv)
    device = set_up(options)
    for pair, size in product(options.pairs, options.sizes):
        print(compare_pair(pair, options.preset, size, options.batch, device, options.rounds)[1])


if __name__ == "__main__":
    main()
