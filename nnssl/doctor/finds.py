"""What nnU-Net will find: our trainers, and the checkpoint that each of them would start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from pathlib import Path

from nnssl import address, checkpoint, files, hook
from nnssl.doctor import ways
from nnssl.doctor.finding import Finding, first_line, note, ok, wrong
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO, Recipe, is_ours
from nnssl.plans.cautions import cautions
from nnssl.types import PREPROCESSED

TRAINERS = (
    "SwinSSLTrainer",
    "SwinScratchTrainer",
    "SwinFrozenTrainer",
    "SwinGradualTrainer",
    "SwinLoRATrainer",
)
FIND_OURS = f'export {hook.VARIABLE}="{hook.trainers_folder()}"'
NOT_PLANS = ("dataset.json", "dataset_fingerprint.json", "splits_final.json")
SETUP = "setup.py"


def trainers() -> list[Finding]:
    """By nnU-Net's own search, unless it would import what must not be imported."""
    named = [
        Path(folder)
        for folder in os.environ.get(hook.VARIABLE, "").split(os.pathsep)
        if folder.strip()
    ]
    if misleading := [finding for folder in named for finding in _misleading(folder)]:
        return misleading
    found = {}
    for name in TRAINERS:
        try:
            found[name] = _search(name)
        except (Exception, SystemExit) as error:  # it imports all Python files of those folders
            value = os.environ.get(hook.VARIABLE)
            where = f"{hook.VARIABLE}={value}" if value else f"{hook.VARIABLE} is not set"
            return [
                wrong(
                    f"nnU-Net does not find -tr {name}; {where}\n{first_line(error)[:200]}",
                    FIND_OURS,
                )
            ]
    # Not by the class's module: nnU-Net takes those that it found out of sys.modules again.
    places = sorted({str(Path(cls.__init__.__code__.co_filename).parent) for cls in found.values()})
    says = f"-tr {', '.join(found)} in {', '.join(places)}"
    if hook.trainers_folder() in (hook.BEFORE or "").split(os.pathsep):
        return [ok(f"{says}, by {ways.way()}")]
    says = (
        f"{says},\nbut only here, where nnssl is imported, as in a notebook that does. This "
        f"package is {ways.installation()},"
    )
    if others := ways.other_copies(hook.BEFORE or ""):
        copy = "nnU-Net's commands take those of another copy"
        return [note(f"{says}\nand {copy}: {', '.join(others)}", FIND_OURS)]
    return [
        wrong(
            f"{says}\nand {hook.VARIABLE} is not set to them, so that nnU-Net's commands do not",
            FIND_OURS,
        )
    ]


def _misleading(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        yield wrong(
            f"{hook.VARIABLE} names {folder}, which is no folder: nnU-Net passes over it silently",
            FIND_OURS,
        )
    if (folder / SETUP).is_file():
        says = (
            f"{hook.VARIABLE} names {folder}, which holds {SETUP}: nnU-Net imports every Python "
            "file below it"
        )
        yield wrong(f"{says}.\nName the folder of the trainers, not the repository", FIND_OURS)


def _search(name: str) -> type:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with redirect_stdout(StringIO()):  # it tells of each module that it looks at
        return recursive_find_trainer_class_by_name(name)


def checkpoints() -> list[Finding]:
    """Those that plans name, then the one for plans that name none."""
    named = list(_named_by_plans())
    default = _default()
    if any(finding.state == "ok" for finding in named) and default.state == "wrong":
        default = note(default.says, default.remedy)
    return [*named, default]


def _named_by_plans() -> Iterator[Finding]:
    top = os.environ.get(PREPROCESSED)
    for path in sorted(Path(top).glob("Dataset*/*.json")) if top else ():
        if path.name in NOT_PLANS:
            continue
        try:
            plans = files.read_json(path)
        except (ValueError, OSError) as error:
            yield wrong(f"{path} cannot be read: {first_line(error)}", f"rm {path}")
            continue
        if INFO in plans or any(map(is_ours, plans.get("configurations", {}).values())):
            yield _judge(path, plans)
            for says, remedy in cautions(path.parent, plans):
                yield note(f"{path.parent.name} -p {path.stem}: {says}", remedy)


def _judge(path: Path, plans: dict) -> Finding:
    dataset, name = path.parent.name, path.stem
    info = plans.get(INFO, {})
    again = f"nnssl_plan -d {dataset} -c CHECKPOINT --name {'NAME' if '__' in name else name}"
    try:
        Recipe.of(plans)
        if not info.get("checkpoint_path"):
            return ok(f"{dataset} -p {name}: no checkpoint, for -tr SwinScratchTrainer")
        if address.is_address(info["checkpoint_path"]):  # nothing is fetched for a look
            return ok(f"{dataset} -p {name}: {info['checkpoint_path']}, fetched where it is used")
        choice = checkpoint_choice.choose(info, f"{dataset}/{name}.json")
        loaded = _load(choice.path)
        checkpoint_choice.check(choice, loaded.sha256)
    except (ValueError, TypeError, OSError) as error:
        return wrong(f"{dataset} -p {name}: {_without_remedy(error)}", again)
    return ok(f"{dataset} -p {name}: {_about(loaded)}")


def _default() -> Finding:
    choose_one = f"export {checkpoint_choice.VARIABLE}=PATH_TO_CHECKPOINT"
    if address.is_address(named := os.environ.get(checkpoint_choice.VARIABLE, "")):
        return ok(f"plans that name no checkpoint: {named}, fetched where it is used")
    try:
        choice = checkpoint_choice.choose({})
    except checkpoint_choice.NoCheckpointError as error:
        return wrong(f"plans that name no checkpoint: {_without_remedy(error)}", choose_one)
    try:
        return ok(f"plans that name no checkpoint: {_about(_load(choice.path))}, {choice.named_by}")
    except (ValueError, OSError) as error:
        return wrong(
            f"plans that name no checkpoint: {first_line(error)}",
            f"{choose_one}   # or copy the file again",
        )


def _load(path: Path) -> checkpoint.Checkpoint:
    return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # several plans usually name one file
def _loaded(path: Path, written: int) -> checkpoint.Checkpoint:
    return checkpoint.load(path)


def _about(loaded: checkpoint.Checkpoint) -> str:
    config = loaded.encoder_config
    size = f"{config.spatial_dims}D, {config.in_channels} channel(s), embed_dim {config.embed_dim}"
    return f"{loaded.path} ({loaded.method}, {size}, sha256 {loaded.sha256[:12]})"


def _without_remedy(error: BaseException) -> str:
    """A message without the ways to fix it that the trainers' log lists: here one line follows."""
    return (
        str(error)
        .partition(checkpoint_choice.REMEDY)[0]
        .partition("Put the old file back")[0]
        .strip()
    )
