"""Files of other projects with random weights, small, in the layouts in which they are
published.
"""

from __future__ import annotations

from collections.abc import Iterable

import timm
import torch
from monai.networks.nets import swin_unetr
from oracles.swins import LegacyMerging, Smit
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

DEPTHS, HEADS = (2, 1, 2, 1), (1, 2, 3, 4)


def random(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` in double precision and evaluation, with weights of which all matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        scale = 0.3 if parameter.ndim > 1 else 0.5
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return network.double().eval()


def smit(qkv_bias: bool = False, **changes: object) -> Smit:
    return random(
        Smit(
            **({"embed_dim": 12, "depths": DEPTHS, "heads": HEADS, "window": 4} | changes),
            qkv_bias=qkv_bias,
        )
    )


def monai(dims: int = 3, legacy: bool = True, **changes: object) -> swin_unetr.SwinTransformer:
    options = {
        "in_chans": 1,
        "embed_dim": 12,
        "depths": DEPTHS,
        "num_heads": HEADS,
        "window_size": (7,) * dims,
        "downsample": LegacyMerging if legacy else "merging",
    }
    return random(
        swin_unetr.SwinTransformer(
            **(options | changes),
            patch_size=(2,) * dims,
            spatial_dims=dims,
            qkv_bias=True,
        )
    )


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def heads(names: Iterable[str]) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.zeros(2) for name in names}


def model_swinvit(network: nn.Module) -> dict:
    """MONAI's model_swinvit.pt."""
    tensors = {
        name.replace("linear", "fc"): tensor for name, tensor in network.state_dict().items()
    }
    others = heads(["norm", "rotation_head", "contrastive_head", "conv.0"])
    return {
        "epoch": 100,
        "state_dict": prefixed("module.", tensors | others),
        "optimizer": {"state": {}},
    }


def ssl_pretrained(network: nn.Module) -> dict:
    """MONAI's ssl_pretrained_weights.pth."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        nested = name[: len("layers1.0.")] + "0." + name[len("layers1.0.") :]
        tensors[nested if name.startswith("layers") else name] = tensor
    tensors |= {"mask_token": torch.zeros(1, 12, 1, 1, 1)} | heads(["norm"])
    return {
        "model": prefixed("encoder.", tensors) | heads(["decoder.0"]),
        "optimizer": {},
        "epoch": 3,
    }


def voco(network: nn.Module) -> dict:
    """VoCo_B_SSL_head.pt."""
    others = heads(["module.backbone.encoder1.layer.conv1.conv", "module.student.layer1.0"])
    return {"state_dict": prefixed("module.backbone.swinViT.", network.state_dict()) | others}


def suprem(network: nn.Module) -> dict:
    """supervised_suprem_swinunetr_2100.pth."""
    others = {
        "module.organ_embedding": torch.zeros(3),
        **heads(["module.backbone.decoder1.conv", "module.GAP.0", "module.controller"]),
    }
    return {
        "net": prefixed("module.backbone.swinViT.", network.state_dict()) | others,
        "epoch": 2100,
    }


def retrained(network: nn.Module) -> dict:
    """A SwinUNETR as people save it."""
    return {
        "state_dict": prefixed("swinViT.", network.state_dict())
        | heads(["encoder1.layer", "out.conv.conv"])
    }


def wrapped(network: nn.Module) -> dict:
    """A SwinUNETR that somebody holds under `backbone` in a network of their own."""
    return {
        "state_dict": prefixed("backbone.swinViT.", network.state_dict())
        | heads(["backbone.encoder1.layer", "classifier"])
    }


def smit_10k(network: Smit) -> dict:
    tensors = prefixed("transformer.", network.published() | {"mask_token": torch.zeros(1, 1, 12)})
    return {
        "student": prefixed("module.backbone.", tensors) | heads(["module.head.mlp.0"]),
        "epoch": 400,
    }


def timm_swin() -> nn.Module:
    return random(
        timm.models.swin_transformer.SwinTransformer(
            img_size=128,
            patch_size=4,
            embed_dim=12,
            depths=DEPTHS,
            num_heads=HEADS,
            window_size=4,
            num_classes=5,
        )
    )


def torchvision_swin() -> nn.Module:
    return random(
        TorchvisionSwin(
            [4, 4], 12, list(DEPTHS), list(HEADS), [4, 4], num_classes=5, stochastic_depth_prob=0
        )
    )


def authors_swin(network: nn.Module) -> dict:
    """Liu et al.'s own file, from timm's network: a merge belongs to the stage before it."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        words = name.split(".")
        if words[0] == "layers" and words[2] == "downsample":
            words[1] = str(int(words[1]) - 1)
        tensors[".".join(words)] = tensor
    return {"model": tensors}
