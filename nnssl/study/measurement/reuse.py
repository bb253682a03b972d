"""Feature reuse of a study's finished runs: CKA and attention distance, appended to results.jsonl.

    of every task, arm and seed:  pretrained -- few labels,  pretrained -- many labels,  few -- many

Few and many are the smallest and the largest budget that is done. All is read from the runs'
job.json and nnU-Net's folders. What results.jsonl has already is not measured again, unless the
runs have been trained again or another number of volumes is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path

from torch import Tensor

from nnssl import files
from nnssl.finetune import resolve
from nnssl.finetune.architecture import INFO, is_ours
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.design import splits
from nnssl.study.design.description import Study
from nnssl.study.execution import collect, jobs, runs
from nnssl.study.execution.job_records import FineTuningJob, StudyError
from nnssl.study.execution.jobs import training_fingerprint
from nnssl.study.measurement import features
from nnssl.study.rows import PRETRAINED, AttentionRow, Budget, CkaRow, by_size, grouped
from nnssl.types import PREPROCESSED, PrintFn, Shape

VOLUMES = 50
MEASURED = {kind.KIND: kind for kind in (CkaRow, AttentionRow)}

Key = tuple[str | int, ...]
Measured = CkaRow | AttentionRow


def measure_missing(
    study: Study, volumes: int = VOLUMES, print_fn: PrintFn = lambda text: None
) -> int:
    """Append to `study.results` what it lacks; returns the number of new rows.

    volumes: crops of validation cases that each pair sees. Runs of other networks than ours are
    left out. The file must end with a whole line, as `collect` leaves it.
    """
    stored, new = _stored(study.results), 0
    folder = study.runs
    for one in [ReuseComparison(ends, volumes, folder) for ends in _ends(study)]:
        known = {row.key for row in stored if one.accepts(row)}
        if one.is_ours and not known.issuperset(one.wanted()):
            print_fn(f"feature reuse: {one.job.task}, {one.job.arm}, seed {one.job.seed}")
            new += _append(study.results, one.rows(), known)
    return new


def _append(path: Path, rows: Iterator[Measured], known: set[Key]) -> int:
    """Those that are not known yet, each as soon as it is measured; their number."""
    new = 0
    for row in rows:
        if row.key not in known:
            with collect.writing(path):
                files.append_json_line(path, row.to_json())
            new += 1
    return new


def _stored(path: Path) -> list[Measured]:
    """The rows that were measured before; of those with the same key the last one."""
    rows = [row for row in collect.stored_rows(path) if row["kind"] in MEASURED]
    parsed = [_measured_row(path, MEASURED[row["kind"]], row) for row in rows]
    return list({row.key: row for row in parsed}.values())


def _measured_row(path: Path, kind: type[Measured], row: dict) -> Measured:
    if lacking := kind.lacking(row):
        raise StudyError(
            f"{path}: a row of kind {kind.KIND} lacks {', '.join(lacking)}: {str(row)[:60]}. "
            "Remove that row, and nnssl_study features measures it again"
        )
    return kind.from_json(row)


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
    """The jobs of the runs that count for the description as it is now."""
    done = [run for run in runs.all_runs(study) if run.is_done]
    counted = [run for run in done if not collect.is_described_otherwise(run)]
    found = [jobs.read_job(run.folder) for run in counted]
    return [job for job in found if isinstance(job, FineTuningJob)]


@dataclass(frozen=True)
class ReuseComparison:
    """Feature reuse among the networks of one arm, task and seed.

    jobs: of the fewest and the most labels. folder: of the study's runs.
    """

    jobs: list[FineTuningJob]
    volumes: int
    folder: Path

    @property
    def job(self) -> FineTuningJob:
        return self.jobs[0]

    @property
    def data(self) -> Path:
        return Path(os.environ[PREPROCESSED], self.job.dataset)

    @cached_property
    def plans(self) -> dict:
        """Raises StudyError where they have changed since the runs were begun."""
        for job in self.jobs:
            job.require_same_plans()
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
        """The budget of each network, `PRETRAINED` for the encoder before its fine-tuning."""
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

    def accepts(self, row: Measured) -> bool:
        """Whether a row with a key of its own still holds: of these trainings and as many volumes.
        What an earlier version has not noted, such as the pretrained one, does not count.
        """
        if row.trainings is None:
            return True
        networks = self._trainings_of(row)
        earlier = networks and [one for one in networks if one != self.job.checkpoint]
        return row.trainings in (networks, earlier) and row.volumes == self.volumes

    def _trainings_of(self, row: Measured) -> list[str] | None:
        """What tells its networks from others: of the pretrained one the checkpoint's hash, where
        the run has noted it; None where a fine-tuned one has no results.
        """
        named = [self._trainings[name] for name in row.encoders if name in self._trainings]
        known = [fingerprint for fingerprint in named if fingerprint]
        return known if len(known) == len(named) else None

    @cached_property
    def _trainings(self) -> dict[str, str | None]:
        """Of each network, by its name."""
        folders = {f"{job.arm} {job.budget}": self.folder / job.run for job in self.jobs}
        found = {name: training_fingerprint(folder) for name, folder in folders.items()}
        sha256 = self.job.checkpoint
        return {f"{self.job.arm} {PRETRAINED}": sha256, **found} if sha256 else found

    def rows(self) -> Iterator[Measured]:
        networks = self._networks()
        for row in chain(self._cka_rows(networks), self._attention_rows(networks)):
            yield replace(row, trainings=self._trainings_of(row), volumes=self.volumes)

    def _cka_rows(self, networks: list[tuple[Budget, SwinUNETR]]) -> Iterator[CkaRow]:
        job = self.job
        named = [(f"{job.arm} {budget}", each) for budget, each in networks]
        for first, second in combinations(named, 2):
            yield features.cka_row(job.task, *first, *second, self._crops(), job.seed)

    def _attention_rows(self, networks: list[tuple[Budget, SwinUNETR]]) -> Iterator[AttentionRow]:
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
        if self.job.val is not None:
            return self.job.val
        return splits.read(self.data / splits.FILE)[self.job.fold]["val"]  # of an earlier version
