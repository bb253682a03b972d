"""Plans as nnU-Net makes them: the part that matters to ours."""

from __future__ import annotations

DATASET = "Dataset901_Made"


def configuration(patch: list[int], schemes: tuple[str, ...] = ("CTNormalization",)) -> dict:
    dims = len(patch)
    return {
        "data_identifier": f"nnUNetPlans_{dims}d",
        "patch_size": patch,
        "batch_size": 2,
        "spacing": [1.5, 1.0, 1.0][-dims:],
        "normalization_schemes": list(schemes),
        "architecture": {
            "network_class_name": "PlainConvUNet",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
    }


def nnunet_plans(schemes: tuple[str, ...] = ("CTNormalization",)) -> dict:
    """The part of nnU-Net's plans that matters here, with the two cascaded configurations."""
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "foreground_intensity_properties_per_channel": {
            str(c): {"mean": 90.0, "std": 140.0} for c in range(2)
        },
        "configurations": {
            "2d": configuration([48, 40], schemes),
            "3d_lowres": configuration([24, 32, 32], schemes),
            "3d_fullres": configuration([20, 48, 40], schemes),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }
