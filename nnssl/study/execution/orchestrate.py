"""`nnssl_study run`: the missing steps, in order. The same command again continues where it
stopped.

requirements -> data -> pretrained checkpoints -> jobs of the runs -> training -> results
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping

from nnssl import signals
from nnssl.study.design.description import Study
from nnssl.study.execution import collect, datasets, fine_tuning, pretraining, requirements, runs
from nnssl.study.execution.executor import Executor
from nnssl.study.execution.jobs import LOG
from nnssl.study.execution.runs import StudyRun
from nnssl.study.execution.shell import Foreground
from nnssl.types import PrintFn


def run(study: Study, executor: Executor, print_fn: PrintFn) -> dict[str, str]:
    """All that is missing; the state of each run by its name. Results so far are collected even
    when it is stopped.

    Raises StudyError, SplitError, CommandError for what concerns all runs; a single run's failure
    is its state.
    """
    try:
        # a cluster's notice; as Ctrl-C
        with signals.handled(lambda *_: sys.exit(143), [signal.SIGTERM]):
            outstanding = prepare_runs(study, executor, print_fn)
            executor([run.folder for run in outstanding], print_fn)
    finally:
        states = collect.collect(study)
    return states


def prepare_runs(study: Study, executor: Executor, print_fn: PrintFn) -> list[StudyRun]:
    """Data, pretrained checkpoints, plans, splits and jobs; the runs that can be done, in their
    order, without those that are done.
    """
    requirements.check_inputs(study)
    pairs, here = runs.all_pairs(study), Foreground(study.folder / "logs", print_fn)
    datasets.preprocess(study, here)
    pretraining.pretrain_missing(study, executor, print_fn)
    outstanding = [run for run in fine_tuning.write_jobs(pairs, here) if not run.is_done]
    print_fn(f"{len(outstanding)} of {sum(len(pair.runs) for pair in pairs)} runs to do")
    return outstanding


def summary(study: Study, states: Mapping[str, str]) -> str:
    """Counts, the failed runs with their reasons, and the line to type next."""
    first = f"Runs: {_state_counts(states.values())}. Results: {study.results}"
    return "\n".join([first, *map(_failure_line, _failed_runs(study, states))])


def _failed_runs(study: Study, states: Mapping[str, str]) -> list[StudyRun]:
    return [run for run in runs.all_runs(study) if states[run.name] == "failed"]


def _state_counts(states: Iterable[str]) -> str:
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "missing"))


def _failure_line(run: StudyRun) -> str:
    return f"  failed: {run.name}: {collect.outcome_of(run).in_short} (log: {run.folder / LOG})"
