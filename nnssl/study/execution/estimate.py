"""The missing steps of a study and their cost; nothing is run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nnssl.commands import Command
from nnssl.study.design.description import Study
from nnssl.study.execution import collect, datasets, pretraining, requirements, runs
from nnssl.study.execution.arm_plans import Plans
from nnssl.study.execution.job_records import DONE
from nnssl.study.execution.runs import StudyRun
from nnssl.study.rows import RunRow


def describe_study(study: Study, parallel: int) -> str:
    """parallel: number of concurrent runs."""
    requirements.check_inputs(study)
    every = runs.all_runs(study)
    todo = [run for run in every if not run.is_done]
    others = [run for run in every if run.is_done and collect.is_described_otherwise(run)]
    commands = [f"$ {shlex.join(command)}" for command in commands_before(study)]
    return "\n".join(
        [
            _study_size(study),
            "Before the runs:",
            *(f"  {command}" for command in commands or ["$ nothing"]),
            f"Runs: {len(every)}, done {len(every) - len(todo)}, to do {len(todo)}",
            *map(_in_a_line, todo),
            *_of_other_settings(others),
            *([] if others and not todo else [cost(every, todo, parallel)]),
        ]
    )


def _of_other_settings(others: Sequence[StudyRun]) -> list[str]:
    """Of the runs that are done, those that the description does not describe."""
    if not others:
        return []
    return [
        f"Of those done, {len(others)} have other settings than the description says now:",
        *(f"  {run.name}" for run in others),
        "After a change of the tolerance, or of a path to the same checkpoint, nnssl_study run "
        "measures or notes them again; others it refuses: put the earlier settings back, or give "
        "the study or the arm another name",
    ]


def _in_a_line(run: StudyRun) -> str:
    return f"  {run.name}  ({run.trainer}, {run.epochs or 'its own'} epochs)"


def _study_size(study: Study) -> str:
    repeats = "fold" if study.by_fold else "seed"
    return (
        f"Study {study.name}: {len(study.tasks)} task(s) x {len(study.arms)} arm(s) x "
        f"{len(study.budgets)} budget(s) x {len(study.seeds)} {repeats}(s), in {study.folder}"
    )


def commands_before(study: Study) -> list[Command]:
    """The steps before the runs, as known now."""
    commands = []
    for dataset, *what in datasets.wanted(study):
        commands += dataset.commands(*what)
    for start in pretraining.all_starts(study):
        commands += [] if start.is_done else start.job.commands
    for plans in map(Plans, runs.all_pairs(study)):
        commands += [plans.command] if plans.command and not plans.is_noted else []
    return commands


def cost(every: Sequence[StudyRun], todo: Sequence[StudyRun], parallel: int) -> str:
    """By the hours an epoch took in runs of the same task and arm, or of the task, or of any that
    is done.
    """
    if not todo:
        return "Cost: nothing left to do"
    epochs = sum(run.epochs for run in todo)
    done = [row for row in map(collect.row_of, every) if row.state == DONE]
    if not done:
        return (
            f"Cost: {epochs} epochs in all. The time per epoch is known only after the first run; "
            "this line then shows hours"
        )
    hours = sum(run.epochs * _hours_an_epoch(_similar_runs(run, done)) for run in todo)
    return (
        f"Cost: {epochs} epochs to do, about {hours:.1f} hours of training, "
        f"{hours / parallel:.1f} with {parallel} in parallel, plus validation (estimated from "
        f"{len(done)} run(s) done, which took {_hours(done):.1f} hours)"
    )


def _similar_runs(run: StudyRun, done: Sequence[RunRow]) -> Sequence[RunRow]:
    """Those from which the hours of `run` are estimated."""
    on_task = [row for row in done if row.task == run.task.name]
    return [row for row in on_task if row.arm == run.arm.name] or on_task or done


def _hours_an_epoch(done: Sequence[RunRow]) -> float:
    return _hours(done) / max(1, sum(row.epochs or 0 for row in done))


def _hours(done: Sequence[RunRow]) -> float:
    return sum(row.hours or 0.0 for row in done)
