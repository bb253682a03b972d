"""Feature reuse of a study's finished runs: CKA and attention distance, appended to results.jsonl.

    of every task, arm and seed:  pretrained -- few labels,  pretrained -- many labels,  few -- many

Few and many are the smallest and the largest budget that is done. All is read from the runs'
job.json and nnU-Net's folders; what results.jsonl has already is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from nnssl.study.rows import AttentionRow, Budget, CkaRow, Row, by_size, grouped
from nnssl.types import PREPROCESSED, PrintFn, Shape

VOLUMES = 50
PRETRAINED = "pretrained"  # in the place of a budget
MEASURED = {kind.KIND: kind for kind in (CkaRow, AttentionRow)}

Key = tuple[str | int, ...]


def measure_missing(
    study: Study, volumes: int = VOLUMES, print_fn: PrintFn = lambda text: None
) -> int:
    """Append to `study.results` what it lacks; returns the number of new rows.

    volumes: crops of validation cases that each pair sees. Runs of other networks than ours are
    left out. The file must end with a whole line, as `collect` leaves it.
    """
    known = _known(study.results)
    before = len(known)
    for one in [ReuseComparison(ends, volumes) for ends in _ends(study)]:
        if one.is_ours and not known.issuperset(one.wanted()):
            print_fn(f"feature reuse: {one.job.task}, {one.job.arm}, seed {one.job.seed}")
            _append(study.results, one.rows(), known)
    return len(known) - before


def _append(path: Path, rows: Iterator[Row], known: set[Key]) -> None:
    """Those that are not known yet, each as soon as it is measured."""
    for row in rows:
        if row.key not in known:
            files.append_json_line(path, row.to_json())
            known.add(row.key)


def _known(path: Path) -> set[Key]:
    """The keys of the rows that were measured before."""
    rows = [row for row in files.read_json_lines(path) if row["kind"] in MEASURED]
    return {MEASURED[row["kind"]].key_of(row) for row in rows}


def _ends(study: Study) -> list[list[FineTuningJob]]:
    """By task, arm and seed: the jobs of the smallest and of the largest budget that is done, or
    the one there is.
    """
    groups = grouped(_done(study), lambda job: (job.task, job.arm, job.seed))
    return list(map(_fewest_and_most, groups.values()))


def _fewest_and_most(found: list[FineTuningJob]) -> list[FineTuningJob]:
    ordered = sorted(found, key=lambda job: by_size(job.budget))
    return [ordered[0], *ordered[1:][-1:]]


def _done(study: Study) -> list[FineTuningJob]:
    done = [jobs.read_job(run.folder) for run in runs.all_runs(study) if run.is_done]
    return [job for job in done if isinstance(job, FineTuningJob)]


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
        networks = self._networks()
        yield from self._cka_rows(networks)
        yield from self._attention_rows(networks)

    def _cka_rows(self, networks: list[tuple[Budget, SwinUNETR]]) -> Iterator[Row]:
        job = self.job
        named = [(f"{job.arm} {budget}", each) for budget, each in networks]
        for first, second in combinations(named, 2):
            yield features.cka_row(job.task, *first, *second, self._crops(), job.seed)

    def _attention_rows(self, networks: list[tuple[Budget, SwinUNETR]]) -> Iterator[Row]:
        job, spacing = self.job, self.configuration["spacing"]
        for budget, network in networks:
            run_fields = (job.task, job.arm, budget, job.seed)
            yield from features.attention_rows(*run_fields, network, spacing, self._crops())

    def _networks(self) -> list[tuple[Budget, SwinUNETR]]:
        found = [features.finetuned(job.training.folder) for job in self.jobs]
        if self.checkpoint:
            found = [features.pretrained(self.checkpoint, like=found[0]), *found]
        return list(zip(self.budgets, found, strict=True))

    def _crops(self) -> Iterator[Tensor]:
        folder = self.data / self.configuration["data_identifier"]
        return features.crops(folder, self._cases, self._patch, self.volumes, self.job.seed)

    @property
    def _patch(self) -> Shape:
        return tuple(self.configuration["patch_size"])

    @property
    def _cases(self) -> list[str]:
        """That the runs are validated on."""
        return files.read_json(self.data / "splits_final.json")[self.job.fold]["val"]
