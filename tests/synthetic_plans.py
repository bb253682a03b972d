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


PER_CHANNEL = "foreground_intensity_properties_per_channel"


EARLY_NETWORK = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 32,
    "unet_max_num_features": 320,
    "n_conv_per_stage_encoder": [2, 2],
    "n_conv_per_stage_decoder": [2],
    "num_pool_per_axis": [1, 1, 1],
    "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
    "conv_kernel_sizes": [[3, 3, 3], [3, 3, 3]],
}


def early(plans: dict) -> dict:
    """`plans` as early nnU-Net v2 wrote them: the intensities have another name, and configurations
    describe a U-Net in place of `architecture`.
    """
    others = {key: value for key, value in plans.items() if key != PER_CHANNEL}
    configurations = {
        name: {key: value for key, value in entry.items() if key != "architecture"}
        | (EARLY_NETWORK if "architecture" in entry else {})
        for name, entry in plans["configurations"].items()
    }
    return others | {
        "foreground_intensity_properties_by_modality": plans[PER_CHANNEL],
        "configurations": configurations,
    }


def nnunet_plans(schemes: tuple[str, ...] = ("CTNormalization",)) -> dict:
    """The part of nnU-Net's plans that matters here, with the two cascaded configurations."""
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        PER_CHANNEL: {str(c): {"mean": 90.0, "std": 140.0} for c in range(2)},
        "configurations": {
            "2d": configuration([48, 40], schemes),
            "3d_lowres": configuration([24, 32, 32], schemes),
            "3d_fullres": configuration([20, 48, 40], schemes),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }
