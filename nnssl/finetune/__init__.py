"""The implementation of our nnU-Net trainers: network, weights, optimiser. The trainers only call
it.

__init__         resolve_architecture   the plans name the network; nnU-Net saves them with a model
initialize       load_named_checkpoint  the encoder's weights, all of them or none
                 optimise               AdamW by layer, the learning rate by the iteration alone
                 Average                of the weights, which are validated and predicted with
load_checkpoint  restore_plans          a model is that of its own checkpoint, not of today's plans
"""

from nnssl.finetune.average import Average
from nnssl.finetune.folds import refuse_mixed_folds
from nnssl.finetune.layer_decay import (
    HEADS,
    describe_recipe,
    layer_of,
    optimise,
    parameter_groups,
    prepare_cpu,
    require_moments_loaded,
)
from nnssl.finetune.lora import add_lora, describe_lora, keep_factors
from nnssl.finetune.moments import PATCHES, calibrate_norms, needs_moments, start_heads
from nnssl.finetune.plans_data import require_data_of_model, require_same_data
from nnssl.finetune.plans_file import (
    build_network,
    cascaded_labels,
    deep_supervision_scales,
    deep_supervision_weights,
    describe_restored,
    require_architecture,
    require_nnunets_network,
    resolve,
    resolve_architecture,
    restore_plans,
    round_patch,
)
from nnssl.finetune.schedule import Schedule, Unfreezing, learning_rate, unfreezing
from nnssl.finetune.weights import (
    freeze,
    intensities,
    load_named_checkpoint,
    random_start,
    stop_broadcasts,
    unwrap,
)

__all__ = [
    "HEADS",
    "PATCHES",
    "Average",
    "Schedule",
    "Unfreezing",
    "add_lora",
    "build_network",
    "calibrate_norms",
    "cascaded_labels",
    "deep_supervision_scales",
    "deep_supervision_weights",
    "describe_lora",
    "describe_recipe",
    "describe_restored",
    "freeze",
    "intensities",
    "keep_factors",
    "layer_of",
    "learning_rate",
    "load_named_checkpoint",
    "needs_moments",
    "optimise",
    "parameter_groups",
    "prepare_cpu",
    "random_start",
    "refuse_mixed_folds",
    "require_architecture",
    "require_data_of_model",
    "require_moments_loaded",
    "require_nnunets_network",
    "require_same_data",
    "resolve",
    "resolve_architecture",
    "restore_plans",
    "round_patch",
    "start_heads",
    "stop_broadcasts",
    "unfreezing",
    "unwrap",
]
