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

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nnssl.bench.timing import Rounds, arguments, peak_memory, side_by_side, table
from nnssl.encoder.presets import preset
from nnssl.encoder.swin import SwinConfig
from nnssl.finetune import deep_supervision_weights, optimise, unwrap
from nnssl.host_memory import keep_freed_memory
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


def nnunet_network(config: SwinConfig) -> nn.Module:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        config.in_channels,
        len(STAGES),
        STAGES,
        nn.Conv3d,
        3,
        (1, *[2] * (len(STAGES) - 1)),
        2,
        CLASSES,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def nnunet_residual(config: SwinConfig) -> nn.Module:
    """ResEnc L as nnU-Net plans it for an isotropic CT patch."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    return ResidualEncoderUNet(
        config.in_channels,
        len(STAGES),
        STAGES,
        nn.Conv3d,
        3,
        (1, *[2] * (len(STAGES) - 1)),
        (1, 3, 4, 6, 6, 6),
        CLASSES,
        (1,) * (len(STAGES) - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


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


def step(
    network: nn.Module, image: torch.Tensor, ours: bool, compiled: bool = True
) -> Callable[[], None]:
    """One training step on made labels; ours with the trainers' optimiser, the rival with PyTorch's
    AdamW.

    On a GPU in bf16, and `compiled` where wished.
    """
    cuda = image.device.type == "cuda"
    labels = torch.randint(
        0, CLASSES, (image.shape[0], 1, *image.shape[2:]), device=image.device
    ).float()
    if ours:
        optimizer, _ = optimise(unwrap(network), Recipe(), image.device)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    run = torch.compile(network) if cuda and compiled else network

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=cuda):
            outputs = run(image)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        weights = deep_supervision_weights(len(outputs))
        terms = [w * _cross_entropy(o, labels) for w, o in zip(weights, outputs, strict=True)]
        sum(terms[1:], terms[0]).backward()
        optimizer.step()

    return one


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), F.interpolate(labels, logits.shape[2:])[:, 0].long())


def compare(
    pair: str, name: str, size: int, batch: int, device: torch.device, rounds: int
) -> tuple[Rounds, str]:
    decoder, deep_supervision, rival, build, target = PAIRS[pair]
    config = preset(name, drop_path=0.0)
    torch.manual_seed(0)
    image = torch.randn(batch, config.in_channels, *(size,) * 3, device=device)
    mine = our_network(config, decoder, deep_supervision).to(device)
    steps = {
        rival: step(build(config).to(device), image, ours=False),
        f"ours, {decoder}": step(mine, image, ours=True),
    }
    costs = side_by_side(steps, rounds, warmup=1, device=device)
    memory = {label: peak_memory(one, device) for label, one in steps.items()}
    title = f"{pair}: preset {name}, {size}^3, batch {batch}; wanted: at most {target}"
    return costs, f"{title}\n{table(costs, rival, memory)}\n"


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pairs", nargs="+", choices=tuple(PAIRS), default=list(PAIRS))
    parser.add_argument("--preset", default="smit")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 96], help="edge of the patch in voxels"
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--allocator",
        choices=("keep", "default"),
        default="keep",
        help="nnssl.host_memory, or glibc's own",
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    kept = options.allocator == "keep" and keep_freed_memory()
    print(
        f"{options.device}, {options.threads} threads, torch {torch.__version__}, freed memory "
        f"kept: {kept}"
    )
    for pair in options.pairs:
        for size in options.sizes:
            device = torch.device(options.device)
            print(compare(pair, options.preset, size, options.batch, device, options.rounds)[1])


if __name__ == "__main__":
    main()
