"""What `nnssl_plan` says of the plans that it has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnssl import files, weights
from nnssl.encoder.config import SwinConfig
from nnssl.finetune.architecture import INFO, has_pretrained_decoder, is_ct, is_ours
from nnssl.finetune.plans_file import resolve
from nnssl.finetune.strides import steps_in_words
from nnssl.network.decoders import spelled_out
from nnssl.plans.cautions import (
    cautions,
    fitting_configurations,
    fold_to_train,
    read_dataset,
    training_command,
)
from nnssl.plans.plan_checks import target
from nnssl.plans.plans_request import PlansRequest
from nnssl.recipe import RECIPE

OF_ITS_OWN = {
    "architecture",
    "data_identifier",
}  # what of a configuration is shown and preprocessed
OF_A_CONFIGURATION = {"steps", "spatial_dims", "in_channels", "axes"}  # of an encoder's settings


def describe_plans(path: Path, request: PlansRequest, before: Mapping | None = None) -> str:
    """What was written, how it differs from the plans of this name `before`, and the commands to
    type next.
    """
    plans, folder = files.read_json(path), path.parent
    fits = fitting_configurations(plans)
    entries = plans["configurations"].items()
    named = {name: resolve(plans, name) for name, own in entries if OF_ITS_OWN & own.keys()}
    lines = [
        str(path),
        *_about_checkpoint(plans),
        f"  decoder {_decoder_of(plans)}; {_recipe_of(plans)}",
        *(_about_configuration(name, own, name in fits) for name, own in named.items()),
        *(_changes(before, plans) if before else ()),
        *_preprocessing_lines(named, fits, folder, request),
        *_warnings(folder, plans),
        *_memory_warnings(plans, read_dataset(folder), request),
        f"Train with: {training_command(plans, request.dataset, fold_to_train(folder))}",
    ]
    return "\n".join(lines)


def _changes(before: Mapping, plans: Mapping) -> list[str]:
    """A line per setting: a flag that is left out returns to its default."""
    then, now = _settings(before), _settings(plans)
    return [
        f"  changed: {key} from {then[key]} to {now[key]}"
        for key in now
        if key in then and then[key] != now[key]
    ]


def _settings(plans: Mapping) -> dict[str, str]:
    """As they are shown, by name: recipe, checkpoint, and each configuration's own."""
    return {
        **{key: _or_default(value) for key, value in plans.get(RECIPE, {}).items()},
        "checkpoint": plans.get(INFO, {}).get("checkpoint_path", "none"),
        **{
            f"{name} {key}": _by(value) if isinstance(value, list) else str(value)
            for name, entry in plans.get("configurations", {}).items()
            for key, value in entry.items()
            if key in ("patch_size", "batch_size", "spacing")
        },
        **_network_settings(plans),
    }


def _network_settings(plans: Mapping) -> dict[str, str]:
    """Of encoder and decoder, but for what belongs to a configuration: strides and dimensions."""
    entries = plans.get("configurations", {}).values()
    networks = [one["architecture"]["arch_kwargs"] for one in entries if is_ours(one)]
    if not networks:
        return {}
    encoder = SwinConfig().to_dict() | networks[0]["encoder"]
    shown = {key: value for key, value in encoder.items() if key not in OF_A_CONFIGURATION}
    return {
        **{f"encoder {key}": str(value) for key, value in shown.items()},
        "decoder": _options_of(networks[0]["decoder"]),
    }


def _options_of(decoder: str | dict) -> str:
    options = spelled_out(decoder)
    return ", ".join([options.pop("name"), *(f"{key} {own}" for key, own in options.items())])


def _or_default(value: object) -> str:
    return "the default" if value is None else str(value)


def _warnings(folder: Path, plans: dict) -> list[str]:
    found = cautions(folder, plans)
    return [f"WARNING: {caution.says}:\n  {caution.remedy}" for caution in found]


def _memory_warnings(plans: dict, dataset: Mapping, request: PlansRequest) -> list[str]:
    """Where the target is exceeded: by a patch or batch that was given, or by the labels that a
    cascade has as channels. None for what other plans of nnU-Net's chose, by a target of theirs.
    """
    is_checked = not request.base or request.patch or request.batch_size
    if not (is_checked and "labels" in dataset):
        return []
    from nnssl.plans.training_memory import estimated_bytes  # brings nnU-Net

    found = {name: estimated_bytes(plans, name, dataset) / 1e9 for name in plans["configurations"]}
    return [
        _says_memory(plans, name, gigabytes, target(request))
        for name, gigabytes in found.items()
        if gigabytes > target(request)
    ]


def _says_memory(plans: dict, name: str, gigabytes: float, wanted: float) -> str:
    entry = resolve(plans, name)
    labels = ", the labels of its previous stage among its channels," * ("previous_stage" in entry)
    return (
        f"WARNING: {name}{labels} needs about {gigabytes:.3g} GB of GPU memory with patch "
        f"{_by(entry['patch_size'])} and batch {entry['batch_size']}; the target is {wanted:g} GB:"
        "\n  give a smaller --patch or --batch-size, or train on a larger GPU"
    )


def _preprocessing_lines(
    configurations: dict, fits: list[str], folder: Path, request: PlansRequest
) -> list[str]:
    """For those that the checkpoint `fits`, or all where it fits none; none where the data of these
    are there.
    """
    wanted = fits or configurations
    missing = [name for name in _unpreprocessed(configurations, folder) if name in wanted]
    if not missing:
        return []
    which = f"-plans_name {request.name} -c {' '.join(missing)}"
    return [f"Preprocess: nnUNetv2_preprocess -d {request.dataset} {which}"]


def _unpreprocessed(configurations: dict, folder: Path) -> list[str]:
    data = {name: folder / entry["data_identifier"] for name, entry in configurations.items()}
    return [name for name, path in data.items() if not path.is_dir()]


def _about_checkpoint(plans: dict) -> list[str]:
    info = plans.get(INFO)
    if not info:
        return ["  no checkpoint"]
    about = weights.about(info["sha256"], is_ct(plans))
    return [f"  checkpoint {info['checkpoint_path']} (sha256 {info['sha256'][:12]})", *about]


def _recipe_of(plans: dict) -> str:
    numbers = plans[RECIPE].items()
    return ", ".join(f"{key} {value}" for key, value in numbers if value is not None)


def _about_configuration(name: str, configuration: dict, fits: bool) -> str:
    line = (
        f"  {name}: patch {_by(configuration['patch_size'])}, batch "
        f"{configuration['batch_size']}, spacing {_by(configuration['spacing'])}, data "
        f"{configuration['data_identifier']}{_strides(configuration)}"
    )
    return line if fits else f"{line} (the checkpoint does not fit: SwinScratchTrainer only)"


def _decoder_of(plans: dict) -> str:
    """The decoder of the configurations, and in which of them its weights are pretrained."""
    entries = plans["configurations"].items()
    ours = {name: entry for name, entry in entries if is_ours(entry)}
    options = next(iter(ours.values()))["architecture"]["arch_kwargs"]["decoder"]
    if plans.get(INFO, {}).get("decoder") != options:
        return options["name"]
    pretrained = [name for name, entry in ours.items() if has_pretrained_decoder(entry)]
    if not pretrained:
        return f"{options['name']} (random start: its strides are not those of the pretraining)"
    where = f" in {', '.join(pretrained)}" * (len(pretrained) < len(ours))
    return f"{options['name']} (pretrained{where})"


def _strides(configuration: dict) -> str:
    steps = configuration["architecture"]["arch_kwargs"]["encoder"]["steps"]
    return f", strides {steps_in_words(steps)} in the order of the files' axes" if steps else ""


def _by(numbers: list) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
