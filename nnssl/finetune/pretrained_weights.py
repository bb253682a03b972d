"""`nnUNetv2_train ... -pretrained_weights FILE`: our network started from another labelled
training.

nnU-Net's `load_pretrained_weights` copies every tensor but the heads, also the intensity map, which
belongs to a dataset and is not learnt; a mismatch fails an assertion without a remedy. It tells
neither trainer nor network that it is at work, and nnU-Net is not patched. So two hooks of PyTorch
watch a network that starts again:

    state_dict       the loader's first look at the network: the file in its hands is compared
    load_state_dict  the dataset's own intensity map stays, whatever the file says
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor, nn

from nnssl import files
from nnssl.finetune.architecture import INFO
from nnssl.network.layers import HEADS
from nnssl.types import PrintFn

LOADER = "load_pretrained_weights"  # of nnunetv2.run; its variables are `fname` and `saved_model`
INTENSITY = "encoder.intensity."
STEM = "encoder.patch_embed.proj.weight"
PRETRAINING = "nnssl_adaptation_plan"  # a key of a pretraining's checkpoint, and of no other file

Shapes = dict[str, tuple[int, ...]]  # of tensors by name


class PretrainedWeightsError(ValueError):
    """The file of `-pretrained_weights` does not fit this network; nothing was loaded."""


class Watch:
    """From now until `end`, weights loaded into `network` are those of another training.

    info: the plans' `pretrain_info`, to compare with that of the file.
    print_fn:  gets each line for the log.
    """

    def __init__(self, network: nn.Module, info: Mapping, print_fn: PrintFn) -> None:
        self.info, self.print_fn, self.about = dict(info), print_fn, ""
        self.loaded = False  # whether weights of another training were
        self.own = network.state_dict()  # shares the network's memory
        self.hooks = [
            network.register_state_dict_pre_hook(self._before_comparing),
            network.register_load_state_dict_pre_hook(self._before_loading),
        ]

    def end(self) -> None:
        """From now on, loaded weights are a complete model, including its intensity map."""
        for hook in self.hooks:
            hook.remove()

    def _before_comparing(self, *_: object) -> None:
        if (held := _held_by_the_loader()) is None:
            return
        file, saved = held
        require_fit(file, saved, self.own)
        saved["network_weights"].update(self._own_intensity())
        self.about = f" {file}"
        self._warn_of_intensities(file, saved)

    def _warn_of_intensities(self, file: str, saved: Mapping) -> None:
        theirs, ours = _plans(saved).get(INFO, {}).get("hu"), self.info.get("hu")
        if theirs != ours:
            self.print_fn(
                f"WARNING: the network in {file} saw other intensities (HU policy {theirs}) than "
                f"these plans specify ({ours}). For identical intensities, plan from the same "
                f"checkpoint: {_replan(saved, file)}"
            )

    def _before_loading(self, _: nn.Module, state_dict: dict, *__: object) -> None:
        state_dict |= self._own_intensity()
        self.loaded = True
        learnt = [name for name in self.own if not name.startswith(INTENSITY)]
        heads = sum(HEADS in name for name in learnt)
        self.print_fn(
            f"Pretrained weights of another training:{self.about} ({len(learnt) - heads} of "
            f"{len(learnt)} tensors; the {heads} of the heads are reinitialised, and the "
            "intensity map remains that of this dataset)"
        )

    def _own_intensity(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.own.items() if name.startswith(INTENSITY)}


def require_fit(file: str, saved: Mapping, own: Mapping[str, Tensor]) -> None:
    """Raises PretrainedWeightsError where the tensors of `saved`, a file's content, are not those
    of `own`.

    By name and shape; heads and intensity map do not count.
    """
    _require_our_network(file, saved)
    ours, theirs = _compared_shapes(own), _compared_shapes(saved["network_weights"])
    _require_same_channels(file, saved, ours, theirs)
    _require_same_shapes(file, saved, ours, theirs)


def _require_same_shapes(file: str, saved: Mapping, ours: Shapes, theirs: Shapes) -> None:
    other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if other:
        first = other[0]
        raise PretrainedWeightsError(
            f"{file} has another encoder or decoder: {len(other)} tensors differ, such as {first} "
            f"({theirs.get(first, 'missing')} in the file, {ours.get(first, 'missing')} here). "
            f"Plan this dataset with the same encoder and decoder: {_replan(saved, file)}"
        )


def _require_same_channels(file: str, saved: Mapping, ours: Shapes, theirs: Shapes) -> None:
    here, there = (shapes.get(STEM, (0, 0))[1] for shapes in (ours, theirs))
    if here != there:
        raise PretrainedWeightsError(
            f"{file} was trained on images of {there} channel(s), but these have {here}: start "
            "from a pretraining's checkpoint, whose first layer is inflated to any number: "
            f"{_replan(saved, file)}"
        )


def _require_our_network(file: str, saved: Mapping) -> None:
    """Raises PretrainedWeightsError for a pretraining checkpoint, or a training of another
    network.
    """
    if PRETRAINING in saved:
        raise PretrainedWeightsError(
            f"{file} is the checkpoint of a pretraining, not of a labelled training: leave out "
            f"-pretrained_weights and create plans that name it: nnssl_plan -d DATASET -c "
            f"{files.quoted(file)} --name NAME, and train with -p NAME"
        )
    if not any(name.startswith("encoder.patch_embed.") for name in saved["network_weights"]):
        trainer = saved.get("trainer_name", "its trainer")
        plans = _plans(saved).get("plans_name", "PLANS")
        raise PretrainedWeightsError(
            f"{file} holds a network of another package; start from it with its own trainer and "
            f"plans: nnUNetv2_train DATASET CONFIGURATION FOLD -tr {trainer} -p {plans} "
            f"-pretrained_weights {files.quoted(file)}"
        )


def _compared_shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """The tensors that must agree in two trainings."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items() if _is_compared(name)}


def _is_compared(name: str) -> bool:
    return HEADS not in name and not name.startswith(INTENSITY)


def _held_by_the_loader() -> tuple[str, Mapping] | None:
    """(path, content) of the file that nnU-Net's loader has read; None where it is not at work."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != LOADER:
        frame = frame.f_back
    held = frame.f_locals if frame is not None else {}
    saved = held.get("saved_model")
    return (str(held.get("fname")), saved) if isinstance(saved, dict) else None


def _plans(saved: Mapping) -> dict:
    """Those that the training in the file was made with."""
    return saved.get("init_args", {}).get("plans", {})


def _replan(saved: Mapping, file: str) -> str:
    """The line that makes plans with encoder and decoder of the file's network."""
    plans = _plans(saved)
    checkpoint = plans.get(INFO, {}).get("checkpoint_path")
    start = f"-a PRESET_OF_{file.rsplit('/', 1)[-1]}"
    if checkpoint:
        start = f"-c {files.quoted(checkpoint)}"
    return f"nnssl_plan -d DATASET {start}{_decoder_option(plans)} --name NAME"


def _decoder_option(plans: dict) -> str:
    """Nothing where the configurations of the plans differ in it, or name none."""
    decoders = _decoders(plans)
    return f" --decoder {decoders.pop()}" if len(decoders) == 1 else ""


def _decoders(plans: dict) -> set[str]:
    """The names of those in the configurations of the plans."""
    configurations = plans.get("configurations", {}).values()
    entries = [one.get("architecture") or {} for one in configurations]
    arguments = [entry.get("arch_kwargs", {}) for entry in entries]
    named = [own["decoder"] for own in arguments if "decoder" in own]
    return {options["name"] if isinstance(options, dict) else options for options in named}
