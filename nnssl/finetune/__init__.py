"""What our nnU-Net trainers share: which network, which weights, which optimiser. The trainers only
call it.

__init__         settle    -> the plans say which network; nnU-Net saves them beside the model
initialize       load      -> the encoder's weights, all of them or none
                 optimise  -> AdamW by layer, the learning rate a closed form of the iteration
                 Average   -> of the weights, which are validated and predicted with
load_checkpoint  adopt     -> a resumed or validated model is that of its own checkpoint, not of today's plans
"""

from nnssl.finetune.average import Average
from nnssl.finetune.lora import add_lora, describe_lora, keep_factors
from nnssl.finetune.optimiser import (
    HEADS,
    describe,
    layer_of,
    optimise,
    parameter_groups,
    prepare_cpu,
)
from nnssl.finetune.plans import (
    adopt,
    build,
    cascaded_labels,
    deep_supervision_scales,
    deep_supervision_weights,
    demand_settled,
    refuse_mixed_folds,
    resolve,
    round_patch,
    settle,
)
from nnssl.finetune.schedule import Schedule, Unfreezing, learning_rate, unfreezing
from nnssl.finetune.statistics import PATCHES, measure, needs_moments, start_heads
from nnssl.finetune.weights import bare, freeze, intensities, load, random_start

__all__ = [
    "HEADS",
    "PATCHES",
    "Average",
    "Schedule",
    "Unfreezing",
    "add_lora",
    "adopt",
    "bare",
    "build",
    "cascaded_labels",
    "deep_supervision_scales",
    "deep_supervision_weights",
    "demand_settled",
    "describe",
    "describe_lora",
    "freeze",
    "intensities",
    "keep_factors",
    "layer_of",
    "learning_rate",
    "load",
    "measure",
    "needs_moments",
    "optimise",
    "parameter_groups",
    "prepare_cpu",
    "random_start",
    "refuse_mixed_folds",
    "resolve",
    "round_patch",
    "settle",
    "start_heads",
    "unfreezing",
]
