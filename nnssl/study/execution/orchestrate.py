"""`nnssl_study run`: what is missing, in order; the cost first. The same line again continues where
it stopped.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnssl import files, signals
from nnssl.commands import Command
from nnssl.study.design.description import OTHERS, Arm, Study, Task
from nnssl.study.execution import collect, job, preparation, runs
from nnssl.study.execution.executor import Executor, Say, local
from nnssl.study.execution.runs import Run, StudyError


def run(study: Study, executor: Executor, say: Say) -> dict[str, str]:
    """All that is missing; the state of each run by its name. Results so far are collected even
    when it is stopped.

    Raises StudyError, SplitError, CommandError for what concerns all runs; a single run's failure
    is its state.
    """
    try:
        # a cluster's notice; as Ctrl-C
        with signals.handled(lambda *_: sys.exit(143), [signal.SIGTERM]):
            preparation.check(study)
            outstanding = [
                one for one in prepare(study, executor, say) if runs.state(one.folder)[0] != "done"
            ]
            say(f"{len(outstanding)} of {len(runs.all_runs(study))} runs")
            executor([one.folder for one in outstanding], say)
    finally:
        states = collect.collect(study)
    return states


def prepare(study: Study, executor: Executor, say: Say) -> list[Run]:
    """Data, starts, plans, splits, and each run's job.json; the runs that have all they need, in
    their order.
    """
    ready = set()
    prepare_data(study, say)
    _make_starts(study, executor, say)
    for task in study.tasks:
        dataset = preparation.full_name(task.dataset)
        splits = preparation.split(study, task)
        for arm in study.arms_of(task):
            plans = _plans(study, task, arm, say)
            for one in [one for one in runs.all_runs(study) if (one.task, one.arm) == (task, arm)]:
                if isinstance(plans, str):
                    _cannot(one, plans)
                else:
                    made = runs.job(one, dataset, splits[one.budget, one.seed], plans)
                    runs.refuse_others(one.folder, made)
                    runs.write_job(one.folder, made)
                    ready.add(one.name)
    return [one for one in runs.all_runs(study) if one.name in ready]


def prepare_data(study: Study, say: Say) -> None:
    """nnU-Net's plans and data of all datasets; which data are missing is known with the plans."""
    for dataset, configuration, plans in preparation.datasets(study):
        for _ in ("plan", "preprocess"):
            commands = preparation.data_commands(dataset, configuration, plans)
            _do(commands, study, f"data-{dataset}-{configuration}", say)


def _make_starts(study: Study, executor: Executor, say: Say) -> None:
    """Those that begin from another arm's encoder come after it."""
    made = preparation.pretrained_encoders(study)
    for later in (False, True):
        folders = []
        for arm in study.arms:
            if arm.name in made and bool(arm.after) == later:
                runs.write_job(preparation.start_folder(study, arm), made[arm.name])
                folders.append(preparation.start_folder(study, arm))
        if todo := [folder for folder in folders if runs.state(folder)[0] != "done"]:
            say(f"{len(todo)} pretrained checkpoint(s)")
            executor(todo, say)


def _plans(study: Study, task: Task, arm: Arm, say: Say) -> Mapping | str:
    """The plans of an arm on a task, made where they are missing or out of date; or why there are
    none.
    """
    source = preparation.encoder_source(study, task, arm) if arm.start not in OTHERS else None
    if source and source.name in preparation.pretrained_encoders(study):
        state, reason = runs.state(preparation.start_folder(study, source))
        if state != "done":
            return f"no checkpoint of arm {source.name}: {reason}"
    folder, name = preparation.preprocessed(task.dataset), runs.plans_of(study, task, arm)
    if arm.start == "elsewhere":
        return files.read_json(folder / f"{name}.json")
    command = preparation.plan_command(study, task, arm)
    if command is None:
        return files.read_json(preparation.write_default_plans(study, task, arm))
    checkpoint = preparation.checkpoint_of(study, source) if source else None
    note = study.folder / "plans" / f"{name}.json"
    made_of = [
        command,
        checkpoint and files.sha256(checkpoint),
        files.sha256(folder / f"{task.plans}.json"),
    ]
    mark = {"fingerprint": files.fingerprint(made_of)}
    if not (
        (folder / f"{name}.json").is_file() and note.is_file() and files.read_json(note) == mark
    ):
        _do([command], study, f"plans-{name}", say)
        files.write_json(note, mark)
    return files.read_json(folder / f"{name}.json")


def _cannot(one: Run, reason: str) -> None:
    if runs.state(one.folder)[0] != "done":
        one.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(one.folder / runs.OUTCOME, {"state": "failed", "reason": reason})


def _do(commands: Sequence[Command], study: Study, name: str, say: Say) -> None:
    """Quick or common to all runs, so here and now; raises CommandError."""
    log = study.folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        say(f"  $ {shlex.join(command)}")
        job.execute(command, log)


def places(device: str, parallel: int | None) -> list[dict[str, str]]:
    """Where runs go beside each other: by default each GPU has one, and a CPU one in all."""
    if device != "cuda":
        return [{}] * beside(device, parallel)
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        raise StudyError(
            "the description says device: cuda, and there is no GPU; write device: cpu, or "
            "--executor slurm"
        )
    visible = _visible(gpus)
    return [{"CUDA_VISIBLE_DEVICES": visible[n % gpus]} for n in range(beside(device, parallel))]


def _visible(gpus: int) -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(n) for n in range(gpus)]


def beside(device: str, parallel: int | None) -> int:
    """How many runs are done beside each other; also where there is no GPU, such as to say the
    cost.
    """
    if parallel or device != "cuda":
        return parallel or 1
    import torch

    return max(1, torch.cuda.device_count())


def executor_of(kind: str, study: Study, parallel: int | None) -> Executor:
    """Of `--executor`."""
    if kind == "slurm":
        from nnssl.study.execution.slurm import slurm

        return slurm(study.folder / "slurm", study.slurm)
    return local(places(study.device, parallel))


# What it costs


def describe(study: Study, parallel: int) -> str:
    """What is missing and what it costs; nothing is done. `parallel`: runs beside each other."""
    preparation.check(study)
    lines = [
        f"Study {study.name}: {len(study.tasks)} task(s) x {len(study.arms)} arm(s) x "
        f"{len(study.budgets)} budget(s) x {len(study.seeds)} "
        f"{'fold' if study.by_fold else 'seed'}(s), in {study.folder}"
    ]
    commands = [c for data in preparation.datasets(study) for c in preparation.data_commands(*data)]
    for name, made in preparation.pretrained_encoders(study).items():
        if runs.state(study.folder / "starts" / name)[0] != "done":
            commands += made["commands"]
    for task in study.tasks:
        arms = [(arm, preparation.plan_command(study, task, arm)) for arm in study.arms_of(task)]
        commands += [command for arm, command in arms if command and not _planned(study, task, arm)]
    lines += [
        "Before the runs:",
        *(f"  $ {shlex.join(command)}" for command in commands or [["nothing"]]),
    ]
    every = runs.all_runs(study)
    todo = [one for one in every if runs.state(one.folder)[0] != "done"]
    lines.append(f"Runs: {len(every)}, done {len(every) - len(todo)}, to do {len(todo)}")
    lines += [f"  {one.name}  ({one.trainer}, {one.epochs or 'its own'} epochs)" for one in todo]
    return "\n".join([*lines, cost(every, todo, parallel)])


def _planned(study: Study, task: Task, arm: Arm) -> bool:
    return (study.folder / "plans" / f"{runs.plans_of(study, task, arm)}.json").is_file()


def cost(every: Sequence[Run], todo: Sequence[Run], parallel: int) -> str:
    """By the hours an epoch took in runs of the same task and arm, or of the task, or of any that
    is done.
    """
    if not todo:
        return "Cost: nothing is left to do"
    epochs = sum(one.epochs for one in todo)
    done = [(one, collect.rows_of(one)[0]) for one in every if runs.state(one.folder)[0] == "done"]
    if not done:
        return (
            f"Cost: {epochs} epochs in all. How long one takes is not known before the first run "
            "is done; this line then says the hours"
        )
    hours = 0.0
    for one in todo:
        alike = [row for other, row in done if (other.task, other.arm) == (one.task, one.arm)]
        alike = (
            alike
            or [row for other, row in done if other.task == one.task]
            or [row for _, row in done]
        )
        hours += (
            one.epochs
            * sum(row["hours"] for row in alike)
            / max(1, sum(row["epochs"] for row in alike))
        )
    spent = sum(row["hours"] for _, row in done)
    return (
        f"Cost: {epochs} epochs to do, about {hours:.1f} hours of training, {hours / parallel:.1f} "
        f"with {parallel} beside each other, and validation (estimated from {len(done)} run(s) "
        f"done, which took {spent:.1f} hours)"
    )


def summary(study: Study, states: Mapping[str, str]) -> str:
    """Counts, the failed runs with their reasons, and the line to type next."""
    counts = ", ".join(
        f"{list(states.values()).count(s)} {s}" for s in ("done", "failed", "missing")
    )
    lines = [f"Runs: {counts}. Results: {study.results}"]
    for one in runs.all_runs(study):
        if states[one.name] == "failed":
            reason = str(runs.state(one.folder)[1]).strip().splitlines()[0]
            lines.append(f"  failed: {one.name}: {reason} (log: {Path(one.folder, runs.LOG)})")
    return "\n".join(lines)
