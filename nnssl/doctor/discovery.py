"""What nnU-Net will find: our trainers, and the checkpoint that each of them would start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from pathlib import Path

from nnssl import address, checkpoint, files, trainer_path
from nnssl.doctor import ways
from nnssl.doctor.finding import Finding, first_line, note, ok, wrong
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO, are_plans, is_ours
from nnssl.plans.cautions import DATASET, SPLITS, cautions
from nnssl.recipe import Recipe
from nnssl.types import PREPROCESSED

TRAINERS = (
    "SwinSSLTrainer",
    "SwinScratchTrainer",
    "SwinFrozenTrainer",
    "SwinGradualTrainer",
    "SwinLoRATrainer",
)
NOT_PLANS = (DATASET, "dataset_fingerprint.json", SPLITS)
SETUP = "setup.py"
OTHER_PLANS = "plans that name no checkpoint"


def trainers() -> list[Finding]:
    """By nnU-Net's own search, unless it would import files that must not be imported."""
    value = os.environ.get(trainer_path.VARIABLE, "")
    named = map(Path, ways.named_in(value))
    if misleading := [finding for folder in named for finding in _misleading(folder)]:
        return misleading
    classes = []
    for name in TRAINERS:
        try:
            classes.append(_search(name))
        except (Exception, SystemExit) as error:  # it imports all Python files of those folders
            return [_not_found(name, value, error)]
    return [_found(classes)]


def _find_ours() -> str:
    """The shell line that names our trainers, and of the user's folders those that are usable."""
    folders = trainer_path.users_folders()
    return trainer_path.shell_line(f for f in folders if not any(_misled_by(Path(f))))


def _not_found(name: str, value: str, error: BaseException) -> Finding:
    """`value`: of the variable."""
    where = f"{trainer_path.VARIABLE}={value}" if value else f"{trainer_path.VARIABLE} is not set"
    says = f"nnU-Net does not find -tr {name}; {where}\n{first_line(error)[:200]}"
    # where ours is named already, it is another folder that cannot be imported
    named = trainer_path.trainers_folder() in ways.named_in(value)
    return wrong(says, trainer_path.shell_line([]) if named else _find_ours())


def _found(classes: list[type]) -> Finding:
    """Where the trainers are, and whether nnU-Net's own commands find them as well."""
    says = f"-tr {', '.join(TRAINERS)} in {', '.join(sorted(set(map(_folder_of, classes))))}"
    before = trainer_path.BEFORE or ""
    if trainer_path.trainers_folder() in before.split(os.pathsep):
        return ok(f"{says}, by {ways.way()}")
    return _only_here(says, before)


def _folder_of(trainer: type) -> str:
    # Not by the class's module: nnU-Net takes those that it found out of sys.modules again.
    return str(Path(trainer.__init__.__code__.co_filename).parent)


def _only_here(says: str, before: str) -> Finding:
    """`before`: the variable's value before nnssl was imported."""
    says = (
        f"{says},\nbut only in processes that import nnssl, such as a notebook. This package is "
        f"{ways.installation()},"
    )
    if others := ways.other_copies(before):
        copy = "nnU-Net's commands use the trainers of another copy"
        return note(f"{says}\nand {copy}: {', '.join(others)}", _find_ours())
    return wrong(
        f"{says}\nand {trainer_path.VARIABLE} is not set to them, so that nnU-Net's commands do "
        "not",
        _find_ours(),
    )


def _misleading(folder: Path) -> Iterator[Finding]:
    return (wrong(says, _find_ours()) for says in _misled_by(folder))


def _misled_by(folder: Path) -> Iterator[str]:
    """Why the variable must not name a folder; nothing where it may."""
    names = f"{trainer_path.VARIABLE} names {folder}, which"
    if not os.path.isdir(folder):  # noqa: PTH112 - False where this user may not look
        yield f"{names} is not a folder: nnU-Net skips it silently"
    if files.is_file(folder / SETUP):
        says = f"{names} holds {SETUP}: nnU-Net imports every Python file below it"
        yield f"{says}.\nName the folder of the trainers, not the repository"


def _search(name: str) -> type:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with redirect_stdout(StringIO()):  # it tells of each module that it looks at
        return recursive_find_trainer_class_by_name(name)


def checkpoints() -> list[Finding]:
    """Those that plans name, then the one for plans that name none."""
    named = list(_named_by_plans())
    default = _default()
    if any(finding.state == "ok" for finding in named) and default.is_wrong:
        default = note(default.says, default.remedy)
    return [*named, default]


def _named_by_plans() -> Iterator[Finding]:
    top = os.environ.get(PREPROCESSED)
    if not top or not os.access(top, os.R_OK | os.X_OK):  # `folders` says so
        return
    for path in sorted(Path(top).glob("Dataset*/*.json")):
        if path.name not in NOT_PLANS:
            yield from _of_plans(path)


def _of_plans(path: Path) -> Iterator[Finding]:
    """Nothing where the file holds no plans, or plans without a network of ours."""
    try:
        plans = files.read_json(path)
    except (ValueError, OSError) as error:
        remedy = "chmod u+r" if isinstance(error, OSError) else "rm"
        says = f"{path} cannot be read: {first_line(error)}"
        yield wrong(says, f"{remedy} {files.quoted(path)}")
        return
    if _names_ours(plans):
        yield _judge(path, plans)
        yield from _cautions(path, plans)


def _names_ours(plans: object) -> bool:
    """Whether they are plans, and of our network: any JSON may lie there, such as lists of splits
    that somebody has put aside.
    """
    if not are_plans(plans):
        return False
    return INFO in plans or any(map(is_ours, plans["configurations"].values()))


def _cautions(path: Path, plans: dict) -> Iterator[Finding]:
    for says, remedy in cautions(path.parent, plans):
        yield note(f"{path.parent.name} -p {path.stem}: {says}", remedy)


def _judge(path: Path, plans: dict) -> Finding:
    dataset, name = path.parent.name, path.stem
    try:
        return ok(f"{dataset} -p {name}: {_starts_from(path, plans)}")
    except (ValueError, TypeError, OSError) as error:
        other = "NAME" if "__" in name else name
        again = f"nnssl_plan -d {dataset} -c CHECKPOINT --name {other}"
        return wrong(f"{dataset} -p {name}: {_without_remedy(error)}", again)


def _starts_from(path: Path, plans: dict) -> str:
    """The checkpoint that plans name. Raises where it is not there, or not the one that was
    planned.
    """
    Recipe.of(plans)
    info = plans.get(INFO, {})
    if not isinstance(info, dict):
        raise TypeError(f"{INFO} is not a mapping but {info!r:.100}")
    named = info.get("checkpoint_path")
    if not named:
        return "no checkpoint, for -tr SwinScratchTrainer"
    if address.is_address(named):  # nothing is fetched for a look
        return f"{named}, fetched where it is used"
    return _about_checked(checkpoint_choice.choose(info, f"{path.parent.name}/{path.name}"))


def _about_checked(choice: checkpoint_choice.CheckpointChoice) -> str:
    """Raises where the file is not the one that was planned."""
    loaded = _load(choice.path)
    checkpoint_choice.require_recorded_hash(choice, loaded.sha256)
    return _checkpoint_summary(loaded)


def _default() -> Finding:
    choose_one = f"export {checkpoint_choice.VARIABLE}=PATH_TO_CHECKPOINT"
    try:
        return ok(f"{OTHER_PLANS}: {_default_checkpoint()}")
    except checkpoint_choice.NoCheckpointError as error:
        return wrong(f"{OTHER_PLANS}: {_without_remedy(error)}", choose_one)
    except (ValueError, OSError) as error:
        says = f"{OTHER_PLANS}: {first_line(error)}"
        return wrong(says, f"{choose_one}   # or copy the file again")


def _default_checkpoint() -> str:
    """The checkpoint of plans that name none. Raises where there is none, or a damaged one."""
    named = os.environ.get(checkpoint_choice.VARIABLE, "")
    if address.is_address(named):
        return f"{named}, fetched where it is used"
    choice = checkpoint_choice.choose({})
    others = _other_defaults() if choice.default else ""
    return f"{_checkpoint_summary(_load(choice.path))}{others}, {choice.named_by}"


def _other_defaults() -> str:
    """The released weights of images other than CT in 3D. Raises where they are damaged."""
    flat = checkpoint_choice.choose({}, dims=2).named
    not_ct = checkpoint_choice.choose({}, is_ct=False).named
    return f"; where no channel is CT {not_ct}; in 2d {flat}"


def _load(path: Path) -> checkpoint.Checkpoint:
    return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # several plans usually name one file
def _loaded(path: Path, written: int) -> checkpoint.Checkpoint:
    return checkpoint.load(path)


def _checkpoint_summary(loaded: checkpoint.Checkpoint) -> str:
    config = loaded.encoder_config
    size = f"{config.spatial_dims}D, {config.in_channels} channel(s), embed_dim {config.embed_dim}"
    return f"{loaded.path} ({loaded.method}, {size}, sha256 {loaded.sha256[:12]})"


def _without_remedy(error: BaseException) -> str:
    """A message without the ways to fix it that the trainers' log lists: here one line follows."""
    before, *_ = str(error).partition(checkpoint_choice.REMEDY)
    before, *_ = before.partition(checkpoint_choice.WHEN_CHANGED)
    return before.strip()
