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
from dataclasses import replace

from torch import Tensor, nn

from nnssl import files
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.presets import PRESETS
from nnssl.finetune.architecture import INFO, is_ours
from nnssl.finetune.plans_file import resolve
from nnssl.network.decoders import named
from nnssl.network.layers import HEADS
from nnssl.network.swin_unetr import SwinUNETR
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

    def __init__(self, network: SwinUNETR, info: Mapping, print_fn: PrintFn) -> None:
        self.info, self.print_fn, self.about = dict(info), print_fn, ""
        self.config, self.raw_skip = network.encoder.config, network.raw_skip
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
        require_fit(file, saved, self.own, self.config)
        saved["network_weights"].update(self._own_intensity())
        self.about = f" {file}"
        self._warn_of_intensities(file, saved)
        self._warn_of_image_skip(file, saved)

    def _warn_of_intensities(self, file: str, saved: Mapping) -> None:
        theirs, ours = _plans(saved).get(INFO, {}).get("hu"), self.info.get("hu")
        if theirs != ours:
            self.print_fn(
                f"WARNING: the network in {file} saw other intensities (HU policy {theirs}) than "
                f"these plans specify ({ours}). For identical intensities, plan from the same "
                f"checkpoint: {_replan(saved)}"
            )

    def _warn_of_image_skip(self, file: str, saved: Mapping) -> None:
        theirs = _arguments(saved).get("image_skip", "mapped") == "raw"
        if theirs != self.raw_skip:
            saw, sees = (_values_seen(raw) for raw in (theirs, self.raw_skip))
            self.print_fn(f"WARNING: the decoder in {file} saw {saw}, but here it sees {sees}")

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


def require_fit(file: str, saved: Mapping, own: Mapping[str, Tensor], config: SwinConfig) -> None:
    """Raises PretrainedWeightsError where the tensors of `saved`, a file's content, are not those
    of `own` by name and shape, or where its encoder computes otherwise from them than that of
    `config`. Heads and intensity map do not count.
    """
    _require_our_network(file, saved)
    ours, theirs = _compared_shapes(own), _compared_shapes(saved["network_weights"])
    _require_same_channels(file, saved, ours, theirs)
    _require_same_shapes(file, saved, ours, theirs)
    _require_same_encoder(file, saved, config)


def _require_same_shapes(file: str, saved: Mapping, ours: Shapes, theirs: Shapes) -> None:
    other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if other:
        first = other[0]
        raise PretrainedWeightsError(
            f"{file} has another encoder or decoder: {len(other)} tensors differ, such as {first} "
            f"({theirs.get(first, 'missing')} in the file, {ours.get(first, 'missing')} here). "
            f"Plan this dataset with the same encoder and decoder: {_replan(saved)}"
        )


def _require_same_encoder(file: str, saved: Mapping, config: SwinConfig) -> None:
    """Windows, taps, merging, axes and steps change what is computed from the same tensors."""
    if (theirs := _encoder_of(saved)) is None:
        return
    ours, saved_as = (_as_compared(each) for each in (config, theirs))
    if other := [key for key, value in ours.items() if saved_as[key] != value]:
        listed = ", ".join(f"{key} {saved_as[key]} in the file, {ours[key]} here" for key in other)
        raise PretrainedWeightsError(
            f"{file} has another encoder ({listed}), which would compute something else from these "
            f"weights. Plan this dataset with the encoder of the file: {_replan(saved)}"
        )


def _as_compared(config: SwinConfig) -> dict:
    """Of any channels, which are compared by the first layer, and any drop path, which belongs to
    the recipe.
    """
    return replace(config, in_channels=1, drop_path=0.0).to_dict()


def _encoder_of(saved: Mapping) -> SwinConfig | None:
    encoder = _arguments(saved).get("encoder")
    return SwinConfig.from_dict(encoder) if encoder else None


def _values_seen(raw: bool) -> str:
    return "the image as nnU-Net gives it" if raw else "the image as in the pretraining"


def _require_same_channels(file: str, saved: Mapping, ours: Shapes, theirs: Shapes) -> None:
    here, there = (shapes.get(STEM, (0, 0))[1] for shapes in (ours, theirs))
    if here != there:
        raise PretrainedWeightsError(
            f"{file} was trained on images of {there} channel(s), but these have {here}: start "
            "from a pretraining's checkpoint, whose first layer is inflated to any number: "
            f"{_replan(saved)}"
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


def _arguments(saved: Mapping) -> dict:
    """The network of the configuration that the file was trained with; empty where it says none."""
    name = saved.get("init_args", {}).get("configuration")
    resolved = resolve(_plans(saved), name) if name else {}
    return resolved["architecture"]["arch_kwargs"] if is_ours(resolved) else {}


def _replan(saved: Mapping) -> str:
    """The line that makes plans with encoder and decoder of the file's network."""
    checkpoint = _plans(saved).get(INFO, {}).get("checkpoint_path")
    start = f"-c {files.quoted(checkpoint)}" if checkpoint else f"-a {_preset_of(saved)}"
    decoder = _arguments(saved).get("decoder")
    option = f" --decoder {named(decoder)['name']}" if decoder else ""
    return f"nnssl_plan -d DATASET {start}{option} --name NAME"


def _preset_of(saved: Mapping) -> str:
    """The name of the file's encoder; PRESET where it has none."""
    encoder = _encoder_of(saved)
    widths = encoder and (encoder.embed_dim, encoder.depths, encoder.window)
    known = {name: (own.embed_dim, own.depths, own.window) for name, own in PRESETS.items()}
    return next((name for name, own in known.items() if own == widths), "PRESET")
