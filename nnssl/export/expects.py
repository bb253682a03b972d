"""model.json: input requirements of an exported network, and the meaning of its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import nnssl
from nnssl import files
from nnssl.export.formats import INPUT, OUTPUT
from nnssl.export.trained import Trained
from nnssl.finetune.architecture import BY_INTENSITIES, INFO, intensities_of

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

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
        "sliding_window": _sliding_window(model),
        "labels": _label_channels(model),
        "made_from": _origin(model),
        "not_in_the_files": list(NOT_IN_THE_FILES),
    }


def _axes(model: Trained) -> list[str]:
    read = [("z", "y", "x")[axis] for axis in model.plans.transpose_forward]
    return ["batch", "channel", *read[-len(model.patch) :]]


def _sliding_window(model: Trained) -> dict:
    # spatial axes: nnU-Net averages over each combination of them, unless it is switched off
    axes = list(model.predictor.allowed_mirroring_axes or ())
    return {"step": STEP, "gaussian_sigma": SIGMA, "mirror_axes": axes}


def _preprocessing(model: Trained) -> dict:
    plans, images = model.plans, len(_schemes(model))
    return {
        "reader": plans.plans.get("image_reader_writer"),
        "transpose_forward": list(plans.transpose_forward),
        "crop": "to the box of voxels that are not 0 in some channel",
        "channels": [_channel(model, number) for number in range(images)],
        "previous_labels": model.channels - images,  # one-hot, of a cascade
        "spacing": list(model.configuration.spacing),
        "order": ["transpose", "crop", "normalise", "resample"],
        "resampling": _resampling(model.configuration.configuration),
    }


def _resampling(configuration: dict) -> dict:
    return {
        "function": configuration.get("resampling_fn_data"),
        "arguments": configuration.get("resampling_fn_data_kwargs"),
    }


def _schemes(model: Trained) -> list[str]:
    return model.configuration.normalization_schemes


def _channel(model: Trained, number: int) -> dict:
    scheme = _schemes(model)[number]
    masks = model.configuration.configuration.get("use_mask_for_norm") or []
    found: dict = {"name": _channel_name(model.dataset, number), "normalisation": scheme}
    if number < len(masks):
        found["within_nonzero_mask"] = masks[number]
    return found | (_ct(model, number) if scheme == BY_INTENSITIES else {})


def _channel_name(dataset: dict, number: int) -> str | None:
    names = dataset.get("channel_names") or dataset.get("modality") or {}
    return names.get(str(number))


def _ct(model: Trained, number: int) -> dict:
    """The numbers of nnU-Net's CTNormalization of a channel."""
    statistics = intensities_of(model.plans.plans)[str(number)]
    ends = [statistics.get("percentile_00_5"), statistics.get("percentile_99_5")]
    return {"clip": ends, "subtract": statistics["mean"], "divide_by": statistics["std"]}


def _label_channels(model: Trained) -> dict:
    manager = model.labels
    found = {"of_dataset": model.dataset["labels"], "regions": manager.has_regions}
    if manager.has_regions:
        return found | _regions(manager)
    channels = [int(label) for label in manager.all_labels]
    return found | {"channels": channels, "read_as": "argmax over the channels"}


def _regions(manager: LabelManager) -> dict:
    regions = [list(r) if isinstance(r, tuple) else r for r in manager.foreground_regions]
    return {
        "channels": regions,
        "read_as": "sigmoid; a voxel above 0.5 takes the channel's label, later ones win",
        "label_of_channel": list(manager.regions_class_order or ()),
    }


def _pretrained(plans: dict) -> dict:
    """The recorded facts on the weights that the fine-tuning started from."""
    pretrained = plans.get(INFO, {})
    names = ("method", "sha256", "citations")
    return {name: pretrained[name] for name in names if name in pretrained}


def _origin(model: Trained) -> dict:
    plans = model.plans.plans
    return {
        "dataset": plans.get("dataset_name"),
        "trainer": model.predictor.trainer_name,
        "plans": plans.get("plans_name"),
        "configuration": model.checkpoint.parents[1].name.split("__")[-1],
        "fold": model.fold,
        "checkpoint": model.checkpoint.name,
        "sha256": files.sha256(model.checkpoint),
        "pretrained": _pretrained(plans),
        "versions": {"nnssl": nnssl.__version__, "torch": torch.__version__},
    }
