"""Feature reuse of a study's finished runs: CKA and attention distance, appended to results.jsonl.

    of every task, arm and seed:  pretrained -- few labels,  pretrained -- many labels,  few -- many

Few and many are the smallest and the largest budget that is done. All is read from the runs'
job.json and nnU-Net's folders; what results.jsonl has already is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from torch import Tensor

from nnssl import files
from nnssl.finetune import resolve
from nnssl.finetune.architecture import INFO, is_ours
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.design.description import Study
from nnssl.study.execution import jobs, runs
from nnssl.study.execution.jobs import FineTuningJob
from nnssl.study.measurement import features
from nnssl.study.rows import AttentionRow, Budget, CkaRow, Row, by_size
from nnssl.types import PREPROCESSED

VOLUMES = 50
PRETRAINED = "pretrained"  # in the place of a budget
MEASURED = {kind.KIND: kind for kind in (CkaRow, AttentionRow)}

Key = tuple[str | int, ...]


def measure(
    study: Study, volumes: int = VOLUMES, say: Callable[[str], object] = lambda text: None
) -> int:
    """Append to `study.results` what it lacks; returns the number of new rows.

    volumes: crops of validation cases that each pair sees. Runs of other networks than ours are
    left out. The file must end with a whole line, as `collect` leaves it.
    """
    known = _known(study.results)
    before = len(known)
    for one in [ReuseComparison(ends, volumes) for ends in _ends(study)]:
        if not one.is_ours or known.issuperset(one.wanted()):
            continue
        say(f"feature reuse: {one.job.task}, {one.job.arm}, seed {one.job.seed}")
        for row in one.rows():
            if row.key not in known:
                files.append_json_line(study.results, row.to_json())
                known.add(row.key)
    return len(known) - before


def _known(path: Path) -> set[Key]:
    """The keys of the rows that were measured before."""
    rows = [row for row in files.read_json_lines(path) if row["kind"] in MEASURED]
    return {MEASURED[row["kind"]].key_of(row) for row in rows}


def _ends(study: Study) -> list[list[FineTuningJob]]:
    """By task, arm and seed: the jobs of the smallest and of the largest budget that is done, or
    the one there is.
    """
    groups: dict[Key, list[FineTuningJob]] = {}
    for run in runs.all_runs(study):
        job = jobs.read(run.folder) if run.is_done else None
        if isinstance(job, FineTuningJob):
            groups.setdefault((job.task, job.arm, job.seed), []).append(job)
    ordered = [sorted(found, key=lambda job: by_size(job.budget)) for found in groups.values()]
    return [[found[0], *found[1:][-1:]] for found in ordered]


@dataclass(frozen=True)
class ReuseComparison:
    """Of the networks of one arm, task and seed. jobs: of the fewest and the most labels."""

    jobs: list[FineTuningJob]
    volumes: int

    @property
    def job(self) -> FineTuningJob:
        return self.jobs[0]

    @property
    def data(self) -> Path:
        return Path(os.environ[PREPROCESSED], self.job.dataset)

    @cached_property
    def plans(self) -> dict:
        return files.read_json(self.data / f"{self.job.plans}.json")

    @cached_property
    def configuration(self) -> dict:
        return resolve(self.plans, self.job.configuration)

    @property
    def is_ours(self) -> bool:
        return is_ours(self.configuration)

    @property
    def checkpoint(self) -> Path | None:
        """That the fine-tuning started from; None for a random start."""
        if self.job.trainer == runs.FIXED_TRAINERS["scratch"]:
            return None
        named = self.plans.get(INFO, {}).get("checkpoint_path")
        return Path(named) if named else None

    @property
    def budgets(self) -> list[Budget]:
        """Of each network."""
        return ([PRETRAINED] if self.checkpoint else []) + [job.budget for job in self.jobs]

    def wanted(self) -> list[Key]:
        """The keys of the rows of CKA, and of the last one of attention that is written for each
        network.
        """
        task, arm, seed = self.job.task, self.job.arm, self.job.seed
        names = [f"{arm} {budget}" for budget in self.budgets]
        pairs = [("cka", task, first, second, seed) for first, second in combinations(names, 2)]
        last = self._last_head
        return pairs + [("attention", task, arm, budget, seed, *last) for budget in self.budgets]

    @property
    def _last_head(self) -> tuple[str, int]:
        """Its layer and number."""
        encoder = self.configuration["architecture"]["arch_kwargs"]["encoder"]
        depths = encoder["depths"]
        return f"stage {len(depths)} block {depths[-1]}", encoder["heads"][-1]

    def rows(self) -> Iterator[Row]:
        task, arm, seed = self.job.task, self.job.arm, self.job.seed
        networks = self._networks()
        named = [(f"{arm} {budget}", each) for budget, each in networks]
        for first, second in combinations(named, 2):
            yield features.cka_row(task, *first, *second, self._crops(), seed)
        for budget, network in networks:
            of, spacing = (task, arm, budget, seed), self.configuration["spacing"]
            yield from features.attention_rows(*of, network, spacing, self._crops())

    def _networks(self) -> list[tuple[Budget, SwinUNETR]]:
        found = [features.finetuned(job.training.folder) for job in self.jobs]
        if self.checkpoint:
            found = [features.pretrained(self.checkpoint, like=found[0]), *found]
        return list(zip(self.budgets, found, strict=True))

    def _crops(self) -> Iterator[Tensor]:
        cases = files.read_json(self.data / "splits_final.json")[self.job.fold]["val"]
        folder = self.data / self.configuration["data_identifier"]
        patch = tuple(self.configuration["patch_size"])
        return features.crops(folder, cases, patch, self.volumes, self.job.seed)
