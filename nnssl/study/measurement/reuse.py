"""Feature reuse of a study's finished runs: CKA and attention distance, appended to results.jsonl.

    of every task, arm and seed:  pretrained -- few labels,  pretrained -- many labels,  few -- many

Few and many are the smallest and the largest budget that is done. All is read from the runs'
job.json and nnU-Net's folders; what results.jsonl has already is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from nnssl import files
from nnssl.finetune import resolve
from nnssl.finetune.architecture import INFO, is_ours
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.design.description import Study
from nnssl.study.execution import runs
from nnssl.study.measurement import features
from nnssl.study.report.results import KEYS, by_size
from nnssl.types import PREPROCESSED

VOLUMES = 50
PRETRAINED = "pretrained"  # in the place of a budget


def measure(
    study: Study, volumes: int = VOLUMES, say: Callable[[str], object] = lambda text: None
) -> int:
    """Append to `study.results` what it lacks; returns the number of new rows.

    volumes: crops of validation cases that each pair sees. Runs of other networks than ours are
    left out. The file must end with a whole line, as `collect` leaves it.
    """
    path = study.results
    known = {
        _key(row) for row in files.read_json_lines(path) if row["kind"] in ("cka", "attention")
    }
    before = len(known)
    for jobs in _ends(study):
        one = _Comparison(jobs, volumes)
        if not one.ours or all(key in known for key in one.wanted()):
            continue
        say(
            f"feature reuse: {one.jobs[0]['task']}, {one.jobs[0]['arm']}, seed "
            f"{one.jobs[0]['seed']}"
        )
        for row in one.rows():
            if _key(row) not in known:
                files.append_json_line(path, row)
                known.add(_key(row))
    return len(known) - before


def _ends(study: Study) -> list[list[dict]]:
    """By task, arm and seed: the jobs of the smallest and of the largest budget that is done, or
    the one there is.
    """
    groups: dict[tuple, list[dict]] = {}
    for run in runs.all_runs(study):
        if runs.state(run.folder)[0] == "done":
            job = files.read_json(run.folder / runs.JOB)
            groups.setdefault((job["task"], job["arm"], job["seed"]), []).append(job)
    ordered = [sorted(jobs, key=lambda job: by_size(job["budget"])) for jobs in groups.values()]
    return [[jobs[0], *jobs[1:][-1:]] for jobs in ordered]


def _key(row: dict) -> tuple:
    return (row["kind"], *(row[name] for name in KEYS[row["kind"]]))


class _Comparison:
    """The networks of one arm, task and seed."""

    def __init__(self, jobs: list[dict], volumes: int) -> None:
        self.jobs, self.volumes = jobs, volumes
        job = jobs[0]
        self.data = Path(os.environ[PREPROCESSED], job["dataset"])
        self.plans = files.read_json(self.data / f"{job['plans']}.json")
        self.configuration = resolve(self.plans, job["configuration"])
        self.ours = is_ours(self.configuration)
        named = self.plans.get(INFO, {}).get("checkpoint_path")
        self.checkpoint = (
            Path(named) if named and job["trainer"] != runs.FIXED_TRAINERS["scratch"] else None
        )

    def wanted(self) -> list[tuple]:
        """The keys of the rows of CKA, and of the last one of attention that is written for each
        network.
        """
        names, job = self._names(), self.jobs[0]
        pairs = [
            ("cka", job["task"], a, b, job["seed"])
            for place, a in enumerate(names)
            for b in names[place + 1 :]
        ]
        encoder = self.configuration["architecture"]["arch_kwargs"]["encoder"]
        last = f"stage {len(encoder['depths'])} block {encoder['depths'][-1]}", encoder["heads"][-1]
        return pairs + [
            ("attention", job["task"], job["arm"], budget, job["seed"], *last)
            for budget in self._budgets()
        ]

    def rows(self) -> list[dict]:
        job, networks, names = self.jobs[0], self._networks(), self._names()
        made = []
        for place, first in enumerate(names):
            for later in range(place + 1, len(names)):
                pair = networks[place], names[later], networks[later]
                made.append(features.cka_row(job["task"], first, *pair, self._crops(), job["seed"]))
        for budget, network in zip(self._budgets(), networks, strict=True):
            of = job["task"], job["arm"], budget, job["seed"]
            made += features.attention_rows(
                *of, network, self.configuration["spacing"], self._crops()
            )
        return made

    def _budgets(self) -> list[int | str]:
        own = [PRETRAINED] if self.checkpoint else []
        return [*own, *(job["budget"] for job in self.jobs)]

    def _names(self) -> list[str]:
        return [f"{self.jobs[0]['arm']} {budget}" for budget in self._budgets()]

    def _networks(self) -> list[SwinUNETR]:
        found = [features.finetuned(runs.fold_folder(**runs.place(job))) for job in self.jobs]
        return (
            [features.pretrained(self.checkpoint, like=found[0])] if self.checkpoint else []
        ) + found

    def _crops(self) -> Iterator[Tensor]:
        job, patch = self.jobs[0], tuple(self.configuration["patch_size"])
        cases = files.read_json(self.data / "splits_final.json")[job["fold"]]["val"]
        folder = self.data / self.configuration["data_identifier"]
        return features.crops(folder, cases, patch, self.volumes, job["seed"])
