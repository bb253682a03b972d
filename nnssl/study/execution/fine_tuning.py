"""The jobs of a study's runs: each with its plans and its split of the cases."""

from __future__ import annotations

from collections.abc import Sequence

from nnssl import files
from nnssl.finetune import resolve
from nnssl.finetune.architecture import INFO, intensities_of
from nnssl.finetune.plans_data import data_settings
from nnssl.study.design import splits
from nnssl.study.design.description import Budget
from nnssl.study.design.splits import Split
from nnssl.study.execution.arm_plans import Plans
from nnssl.study.execution.job_records import FineTuningJob
from nnssl.study.execution.runs import ArmOnTask, StudyRun
from nnssl.study.execution.shell import Foreground

Splits = dict[tuple[Budget, int], Split]  # by budget and seed


def write_jobs(pairs: Sequence[ArmOnTask], here: Foreground) -> list[StudyRun]:
    """Splits, plans and each run's job.json; the runs that have all they need, in their order. The
    others have failed from now on, with the reason.
    """
    splits_of = _append_splits_by_task(pairs)
    for pair in pairs:
        _check_begun(pair, splits_of[pair.task.name])
    ready = [run for pair in pairs for run in _begin(pair, splits_of[pair.task.name], here)]
    return sorted(ready, key=lambda run: run.turn)


def _append_splits_by_task(pairs: Sequence[ArmOnTask]) -> dict[str, Splits]:
    a_pair = {pair.task.name: pair for pair in pairs}
    return {task: append_splits(pair) for task, pair in a_pair.items()}


def _check_begun(pair: ArmOnTask, splits: Splits) -> None:
    """Raises StudyError where a run was begun with other settings: before the plans, by which other
    runs may wait to be trained, are written.
    """
    plans = Plans(pair)
    if plans.obstacle:
        return
    name, foreseen = pair.dataset.name, plans.foreseen
    for run in pair.runs:
        run.check(job(run, name, splits[run.budget, run.seed], foreseen))


def _begin(pair: ArmOnTask, splits: Splits, here: Foreground) -> list[StudyRun]:
    """The runs of an arm on a task, none where it cannot have its plans."""
    plans, runs = Plans(pair), pair.runs
    if reason := plans.obstacle:
        for run in runs:
            run.fail(reason)
        return []
    name, content = pair.dataset.name, plans.provide(here)
    for run in runs:
        run.begin(job(run, name, splits[run.budget, run.seed], content))
    return runs


def append_splits(pair: ArmOnTask) -> Splits:
    """Add the splits of its task to splits_final.json, where they are missing, and return them.
    Raises SplitError.
    """
    dataset, task = pair.dataset, pair.task
    labels = splits.labels_of(dataset.stored(task.configuration, task.plans))
    return splits.append(dataset.folder / splits.FILE, pair.study, task, labels)


def job(run: StudyRun, dataset: str, split: Split, plans: dict) -> FineTuningJob:
    """dataset: the full name; plans: the content of the plans file, or what is known of it."""
    by_others = run.arm.start == "elsewhere"
    return FineTuningJob(
        run=run.name,
        task=run.task.name,
        arm=run.arm.name,
        budget=run.budget,
        cases=len(split.train),
        seed=run.seed,
        dataset=dataset,
        configuration=run.task.configuration,
        fold=split.fold,
        trainer=run.trainer,
        plans=run.plans,
        device=run.study.device,
        tolerance=run.task.tolerance,
        elsewhere=str(run.arm.train or "") if by_others else None,
        train=list(split.train),
        val=list(split.val),
        checkpoint=plans.get(INFO, {}).get("sha256"),
        planned=None if by_others else files.fingerprint(plans),
        data=None if by_others else _data_fingerprint(run, plans),
        described=files.fingerprint(run.described),
        conditions=files.fingerprint(run.conditions),
        after=files.fingerprint(run.after) if run.after else None,
        fingerprint=files.fingerprint(_made_of(run, split, plans)),
    )


def _data_fingerprint(run: StudyRun, plans: dict) -> str | None:
    """A fingerprint of the patches that a training here sees; None where the plans say nothing."""
    if "configurations" not in plans:
        return None
    resolved = resolve(plans, run.task.configuration)
    data, patches = data_settings(plans, resolved), (resolved["patch_size"], resolved["batch_size"])
    return files.fingerprint([data, intensities_of(plans) or None, patches])


def _made_of(run: StudyRun, split: Split, plans: dict) -> dict:
    """What would make it another training: arm, recipe, checkpoint, cases."""
    checkpoint = plans.get(INFO, {}).get("sha256") or run.arm.encoder
    return run.described | {"checkpoint": checkpoint, "train": split.train, "val": split.val}
