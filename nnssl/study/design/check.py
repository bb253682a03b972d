"""What a description would type, read by the commands themselves before anything runs.

A wrong word that `nnssl_plan` finds after a night of pretraining has cost the night.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from nnssl.commands import Command
from nnssl.encoder.presets import preset
from nnssl.finetune.architecture import Recipe
from nnssl.network.decoders import DECODERS
from nnssl.study.design.description import Arm, Study
from nnssl.study.design.values import DescriptionError
from nnssl.study.execution import preparation

Parsers = Mapping[str, Callable[[], argparse.ArgumentParser]]  # of the commands, by name
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


def check(study: Study, parsers: Parsers) -> None:
    """Raises DescriptionError for a method, a flag, a setting or a recipe that a command would
    refuse.
    """
    for arm in study.arms:
        try:
            _check_start(study, arm, parsers)
            if arm.encoder:
                preset(arm.encoder)
        except (ValueError, TypeError) as error:
            raise DescriptionError(f"arm {arm.name}: {error}") from error
        for task in study.tasks:
            recipe = study.recipe_of(task, arm)
            try:
                _check_recipe(recipe, parsers)
            except (ValueError, TypeError) as error:
                raise DescriptionError(
                    f"recipe of arm {arm.name} on task {task.name}: {error}"
                ) from error


def _check_start(study: Study, arm: Arm, parsers: Parsers) -> None:
    if arm.start not in ("pretrain", "imagenet"):
        return
    said = preparation.flags(arm.options)
    if taken := sorted(OF_THE_STUDY.intersection(said)):
        raise ValueError(f"options: {', '.join(taken)} is for the study itself to say")
    (command,) = preparation.commands_of(study, arm, Path("made"))
    args = _parsed(command, parsers)
    if arm.start == "pretrain":
        from nnssl.methods import METHODS

        if args.method not in METHODS:
            raise ValueError(f"method: unknown {args.method!r}; known: {', '.join(METHODS)}")
        METHODS[args.method].Config.parse(args.settings)


def _check_recipe(recipe: Mapping, parsers: Parsers) -> None:
    command = ["nnssl_plan", "-d", "1", *preparation.recipe_flags(recipe)]
    args = vars(_parsed(command, parsers))
    if (decoder := args["decoder"]) and decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}; known: {', '.join(DECODERS)}")
    given = {name: args[name] for name in Recipe.__dataclass_fields__ if name in args}
    Recipe(**{name: value for name, value in given.items() if value is not None})


def _parsed(command: Command, parsers: Parsers) -> argparse.Namespace:
    name, *words = command
    parser = parsers[name]()
    parser.error = _refuse
    try:
        return parser.parse_args(words)
    except SystemExit as error:  # --help
        raise ValueError(f"{' '.join(words)} would end {name} before its work") from error


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
