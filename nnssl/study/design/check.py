"""Check the commands of a description with their own parsers before anything runs.

A typo that `nnssl_plan` finds only after a night of pretraining costs the night.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from nnssl import checkpoint, options, trainer_path
from nnssl.convert.request import ConvertRequest
from nnssl.encoder.presets import preset
from nnssl.network.decoders import DECODERS
from nnssl.plans.plans_request import PlansRequest
from nnssl.recipe import Recipe
from nnssl.study.design.description import Arm, Study, Task
from nnssl.study.design.values import DescriptionError
from nnssl.study.execution import pretraining
from nnssl.study.execution.flags import flags, recipe_flags
from nnssl.study.execution.pretraining import Start
from nnssl.study.execution.runs import FIXED_TRAINERS, ArmOnTask
from nnssl.train.places import dimensions
from nnssl.train.pretrain_options import CommandOptions

DEFAULT, SCRATCH = FIXED_TRAINERS["default"], FIXED_TRAINERS["scratch"]
PRIMUS, SWIN = "PrimusTrainer", "SwinTrainer"  # base classes
DIMENSIONS = {"2d": 2, "3d_fullres": 3, "3d_lowres": 3, "3d_cascade_fullres": 3}  # nnU-Net's own
OF_THE_STUDY = {
    "-o",
    "--c",
    "-i",
    "-d",
    "-m",
    "-a",
    "--from",
    "-device",
    "--only-prepare",
    "--list",
    "--help",
}


def check_settings(study: Study) -> None:
    """Raises DescriptionError for a method, a flag, a setting or a recipe that a command would
    refuse.
    """
    for arm in study.arms:
        with _said_of(f"arm {arm.name}"):
            _check_arm(study, arm)
        _check_recipes(study, arm)


def _check_recipes(study: Study, arm: Arm) -> None:
    for task in study.tasks:
        with _said_of(f"recipe of arm {arm.name} on task {task.name}"):
            _check_recipe(study.recipe_of(task, arm))


def _check_arm(study: Study, arm: Arm) -> None:
    dims = _check_start(study, arm)
    _check_trainers(study, arm)
    _check_dimensions(study, arm, dims)
    if arm.encoder:
        preset(arm.encoder)


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Turn a command's error into a description error that names the entry."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise DescriptionError(f"{what}: {error}") from error


def _check_start(study: Study, arm: Arm) -> int | None:
    """The dimensions of the arm's encoder, where they are known before anything runs."""
    if arm.start == "checkpoint":
        return _dimensions_of(arm.checkpoint)
    if arm.start not in ("pretrain", "imagenet"):
        return None
    _check_options(arm.options)
    ((_, *typed),) = pretraining.commands_of(Start(study, arm), Path("made"))
    command: type = CommandOptions if arm.start == "pretrain" else ConvertRequest
    args = options.parse_words(typed, command)
    if arm.start == "pretrain":
        _check_method(args.method, args.settings)
    built = options.build_dataclass(command, args)
    return dimensions(built) if isinstance(built, CommandOptions) else None


def _dimensions_of(path: Path | None) -> int | None:
    """What is wrong with a checkpoint is said where it is used."""
    try:
        return checkpoint.load(path).encoder_config.spatial_dims if path else None
    except (OSError, ValueError):
        return None


def _check_dimensions(study: Study, arm: Arm, dims: int | None) -> None:
    for task in study.tasks:
        if dims and arm in study.arms_of(task) and DIMENSIONS.get(task.configuration, dims) != dims:
            raise ValueError(
                f"its encoder is {dims}D, but task {task.name} is {task.configuration}; restrict "
                "the arm with tasks: [...], and give the others an arm of their own (options: "
                "{dims: 2} for a pretraining in 2D)"
            )


def _check_options(given: Mapping) -> None:
    if taken := sorted(OF_THE_STUDY.intersection(flags(given))):
        raise ValueError(f"options: {', '.join(taken)} is set by the study itself; leave it out")


def _check_method(name: str, settings: list[str]) -> None:
    from nnssl.methods import METHODS

    if name not in METHODS:
        raise ValueError(f"method: unknown {name!r}; known: {', '.join(METHODS)}")
    METHODS[name].Config.parse(settings)


def _check_trainers(study: Study, arm: Arm) -> None:
    if arm.start == "elsewhere":
        return
    for task in study.tasks:
        if arm in study.arms_of(task):
            _check_trainer(arm, task, ArmOnTask(study, task, arm).trainer)


def _check_trainer(arm: Arm, task: Task, name: str) -> None:
    """Check that nnU-Net will find it, that it loads the weights of an arm that has some, and that
    it follows the recipe's length.
    """
    ancestors = _ancestors(name)
    if arm.is_pretrained and not _loads_weights(name, ancestors):
        raise _without_weights(name)
    if arm.start == "default" and not _heeds_the_recipe(ancestors):
        raise _other_length(name)
    if PRIMUS in ancestors and task.configuration == "2d":
        raise ValueError(
            f"trainer {name} has a 3D network, but task {task.name} is 2d; restrict the arm with "
            "tasks: [...]"
        )


def _heeds_the_recipe(ancestors: set[str]) -> bool:
    return DEFAULT in ancestors and SWIN not in ancestors


def _loads_weights(name: str, ancestors: set[str]) -> bool:
    return SWIN in ancestors - {name} and SCRATCH not in ancestors


def _without_weights(name: str) -> ValueError:
    allowed = ", ".join(each for each in _ours() if _loads_weights(each, _ancestors(each)))
    return ValueError(
        f"trainer {name} does not load pretrained weights; allowed in the recipe of a pretrained "
        f"arm are {allowed} and their subclasses"
    )


def _other_length(name: str) -> ValueError:
    known = ", ".join(each for each in _ours() if each.startswith("DefaultPrimus"))
    return ValueError(
        f"trainer {name} ignores a recipe's epochs and iterations, so its runs would differ in "
        f"length from all others; allowed are {DEFAULT} and its subclasses: {known}. For any "
        "other trainer write start: elsewhere"
    )


def _ours() -> dict[str, list[str]]:
    """Our trainers, each with what it is made of; read and not imported, which takes seconds."""
    folder = Path(trainer_path.trainers_folder())
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    found = re.findall(r"^class (\w+)\((.*)\):", text, re.MULTILINE)
    return {name: bases.split(", ") for name, bases in found}


def _ancestors(name: str) -> set[str]:
    """A trainer's name and those of all that it is made of. ValueError where nnU-Net has none."""
    ours = _ours()
    if name in ours:
        bases = [_ancestors(base) if base in ours else {base} for base in ours[name]]
        return {name}.union(*bases)
    return _others_ancestors(name)


def _others_ancestors(name: str) -> set[str]:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with redirect_stdout(StringIO()):  # it tells of each module that it looks at
            return {cls.__name__ for cls in recursive_find_trainer_class_by_name(name).__mro__}
    except RuntimeError as error:
        raise ValueError(
            f"nnU-Net finds no trainer {name}; known: {', '.join(_ours())}; for your own "
            f"trainers, set their folder in {trainer_path.VARIABLE}"
        ) from error


def _check_recipe(recipe: Mapping) -> None:
    """As `nnssl_plan` reads it."""
    args = options.parse_words(["-d", "1", *recipe_flags(recipe)], PlansRequest, Recipe, unset=True)
    _check_decoder(args.decoder)
    options.require(args, PlansRequest)
    Recipe.chosen(options.values_of(Recipe, args))


def _check_decoder(name: str | None) -> None:
    if name and name not in DECODERS:
        raise ValueError(f"unknown decoder {name!r}; known: {', '.join(DECODERS)}")
