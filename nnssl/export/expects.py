"""model.json: what an exported network expects of an image, and what its logits mean."""

from __future__ import annotations

import torch

import nnssl
from nnssl import files
from nnssl.export.formats import INPUT, OUTPUT
from nnssl.export.trained import Trained
from nnssl.finetune.architecture import INFO

FORMAT_VERSION = 1
STEP, SIGMA = 0.5, 0.125  # nnU-Net's defaults for its sliding window
NOT_IN_THE_FILES = (
    "reading, cropping, resampling and normalisation of images",
    "the sliding window, its Gaussian weights and mirroring",
    "softmax or sigmoid, resampling back, labels, postprocessing",
    "other patch sizes: windows of attention and all shapes but the batch are fixed",
    "the attention kernel for NVIDIA GPUs (Triton); its formula is there, with the same result",
    "half precision: weights and sums are fp32",
)


def card(model: Trained, written: dict[str, dict]) -> dict:
    """JSON-able. written: of each file, by its name, sha256 and largest_difference.

    Axes are the network's: (z, y, x) as nnU-Net's reader gives them, in the order of
    `transpose_forward`. Spacing is in mm, patch in voxels, in that order.
    """
    patch = ["batch", model.channels, *model.patch]
    heads = model.labels.num_segmentation_heads
    return {
        "format_version": FORMAT_VERSION,
        "files": written,
        "input": {"name": INPUT, "dtype": "float32", "shape": patch, "axes": _axes(model)},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", heads, *model.patch]},
        "preprocessing": _preprocessing(model),
        "sliding_window": {
            "step": STEP,
            "gaussian_sigma": SIGMA,
            "mirror_axes": _mirror_axes(model),
        },
        "labels": _labels(model),
        "made_from": _origin(model),
        "not_in_the_files": list(NOT_IN_THE_FILES),
    }


def _axes(model: Trained) -> list[str]:
    read = [("z", "y", "x")[axis] for axis in model.plans.transpose_forward]
    return ["batch", "channel", *read[-len(model.patch) :]]


def _mirror_axes(model: Trained) -> list[int]:
    """Spatial ones: nnU-Net averages over each combination of them, unless it is switched off."""
    return list(model.predictor.allowed_mirroring_axes or ())


def _preprocessing(model: Trained) -> dict:
    plans, configuration = model.plans, model.configuration
    return {
        "reader": plans.plans.get("image_reader_writer"),
        "transpose_forward": list(plans.transpose_forward),
        "crop": "to the box of voxels that are not 0 in some channel",
        "channels": [_channel(model, number) for number in range(len(_schemes(model)))],
        "previous_labels": model.channels - len(_schemes(model)),  # one-hot, of a cascade
        "spacing": list(configuration.spacing),
        "order": ["transpose", "crop", "normalise", "resample"],
        "resampling": {
            "function": configuration.configuration.get("resampling_fn_data"),
            "arguments": configuration.configuration.get("resampling_fn_data_kwargs"),
        },
    }


def _schemes(model: Trained) -> list[str]:
    return model.configuration.normalization_schemes


def _channel(model: Trained, number: int) -> dict:
    dataset, scheme = model.dataset, _schemes(model)[number]
    names = dataset.get("channel_names") or dataset.get("modality") or {}
    masks = model.configuration.configuration.get("use_mask_for_norm") or []
    found: dict = {"name": names.get(str(number)), "normalisation": scheme}
    if number < len(masks):
        found["within_nonzero_mask"] = masks[number]
    return found | (_ct(model, number) if scheme == "CTNormalization" else {})


def _ct(model: Trained, number: int) -> dict:
    """The numbers of nnU-Net's CTNormalization of a channel."""
    seen = model.plans.plans["foreground_intensity_properties_per_channel"][str(number)]
    ends = [seen.get("percentile_00_5"), seen.get("percentile_99_5")]
    return {"clip": ends, "subtract": seen["mean"], "divide_by": seen["std"]}


def _labels(model: Trained) -> dict:
    manager, dataset = model.labels, model.dataset
    found = {"of_dataset": dataset["labels"], "regions": manager.has_regions}
    if not manager.has_regions:
        channels = [int(label) for label in manager.all_labels]
        return found | {"channels": channels, "read_as": "argmax over the channels"}
    regions = [list(r) if isinstance(r, tuple) else r for r in manager.foreground_regions]
    return found | {
        "channels": regions,
        "read_as": "sigmoid; a voxel above 0.5 takes the channel's label, later ones win",
        "label_of_channel": list(manager.regions_class_order or ()),
    }


def _origin(model: Trained) -> dict:
    plans = model.plans.plans
    pretrained = plans.get(INFO, {})
    known = [name for name in ("method", "sha256", "citations") if name in pretrained]
    return {
        "dataset": plans.get("dataset_name"),
        "trainer": model.predictor.trainer_name,
        "plans": plans.get("plans_name"),
        "configuration": model.checkpoint.parents[1].name.split("__")[-1],
        "fold": model.fold,
        "checkpoint": model.checkpoint.name,
        "sha256": files.sha256(model.checkpoint),
        "pretrained": {name: pretrained[name] for name in known},
        "versions": {"nnssl": nnssl.__version__, "torch": torch.__version__},
    }
