"""The encoders that have a name; each is one line of differences to `SwinConfig`'s
defaults.
"""

from __future__ import annotations

from nnssl.encoder.config import SwinConfig

PRESETS: dict[str, SwinConfig] = {
    # For tests, the demo and CPUs.
    "tiny": SwinConfig(embed_dim=24, depths=(2, 2, 4, 2), heads=(2, 4, 8, 8)),
    # The encoder pretrained on 10K scans by SMIT's authors.
    "smit": SwinConfig(drop_path=0.1),
    # Jiang et al., MICCAI 2022, as released.
    "smit_miccai22": SwinConfig(
        depths=(2, 2, 4, 2), heads=(4, 4, 4, 4), qkv_bias=False, drop_path=0.1
    ),
    # Swin UNETR (Tang et al. 2022), MONAI's default.
    "monai": SwinConfig(depths=(2, 2, 2, 2), heads=(3, 6, 12, 24), window=7, patch_norm=False),
}


def preset(name: str, spatial_dims: int = 3, **overrides: object) -> SwinConfig:
    """The preset `name` in 2D or 3D, with any field of `SwinConfig` overridden.

    Raises ValueError for an unknown name or field.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return SwinConfig.from_dict(
        {**PRESETS[name].to_dict(), "spatial_dims": spatial_dims, **overrides}
    )
