"""GPU memory that a training by plans needs, estimated by the memory model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnssl.encoder.config import SwinConfig
from nnssl.finetune.architecture import steps_of
from nnssl.finetune.plans_file import resolve
from nnssl.plans import memory_model


def labels_of(dataset: Mapping) -> LabelManager:
    """nnU-Net's view of the labels in the content of a dataset.json."""
    return LabelManager(dataset["labels"], dataset.get("regions_class_order"))


def labels_as_input(resolved: Mapping, labels: LabelManager) -> int:
    """How many channels a resolved configuration has for the labels of a cascade's previous
    stage.
    """
    return len(labels.foreground_labels) if resolved.get("previous_stage") else 0


def estimated_bytes(plans: dict, name: str, dataset: Mapping) -> float:
    """Bytes at the peak of a training step of configuration `name`, which names our network.

    dataset: the content of dataset.json, for the classes.
    """
    resolved, labels = resolve(plans, name), labels_of(dataset)
    arguments = resolved["architecture"]["arch_kwargs"]
    images = len(resolved["normalization_schemes"])
    config = replace(
        SwinConfig.from_dict(arguments["encoder"]),
        in_channels=images + labels_as_input(resolved, labels),
        steps=steps_of(resolved),
    )
    return memory_model.peak_bytes(
        config,
        arguments["decoder"]["name"],
        tuple(resolved["patch_size"]),
        resolved["batch_size"],
        labels.num_segmentation_heads,
    )
