"""Feature reuse of finished runs: which networks are compared, once each, from nnU-Net's own
folders.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_checkpoints import pretrained as write_pretrained
from synthetic_plans import DATASET, nnunet_plans
from synthetic_results import run_row
from synthetic_study import ARMS, fine_tuning
from synthetic_study import study as described

from nnssl import files
from nnssl.encoder.swin import SwinConfig
from nnssl.finetune.architecture import architecture
from nnssl.hu import HUPolicy
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.design.description import Study
from nnssl.study.execution import jobs
from nnssl.study.execution.job_records import StudyError
from nnssl.study.measurement import reuse
from nnssl.study.report.results import Results
from nnssl.study.rows import KINDS

CONFIG = SwinConfig(embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=2)
TRAINERS = {
    "scratch": "SwinScratchTrainer",
    "smit": "SwinSSLTrainer",
    "nnunet": "DefaultNetworkTrainer",
}


@pytest.fixture
def study(nnunet_env, tmp_path) -> Study:
    """After its runs: two arms of ours with two budgets and nnU-Net's own network."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data = nnunet_env["nnUNet_preprocessed"] / DATASET
    plans = nnunet_plans()
    resolved = plans["configurations"]["3d_fullres"]
    resolved["patch_size"] = [32, 32, 32]
    stored = data / resolved["data_identifier"]
    stored.mkdir(parents=True)
    for case in "ab":
        image = np.random.default_rng(ord(case)).normal(size=(1, 36, 40, 34)).astype(np.float32)
        nnUNetDatasetBlosc2.save_case(image, (image > 1).astype(np.int8), {}, str(stored / case))
    files.write_json(data / "splits_final.json", [{"train": ["c"], "val": ["a", "b"]}] * 3)
    arms = [*ARMS, {"name": "nnunet", "start": "default"}]
    small_study = described(
        tmp_path, arms=arms, tasks=[{"name": "t", "dataset": DATASET}], budgets=[2, "all"]
    )
    for arm, trainer in TRAINERS.items():
        own = json.loads(json.dumps(plans))
        if arm != "nnunet":
            entry = architecture(
                plans, resolved, CONFIG, "light", HUPolicy(-900.0, 1100.0, -40.0, 310.0)
            )
            own["configurations"]["3d_fullres"]["architecture"] = entry
            own["pretrain_info"] = {"checkpoint_path": str(write_pretrained(tmp_path, CONFIG))}
        files.write_json(data / f"p-{arm}.json", own)
        for fold, budget in ((1, 2), (2, "all")):
            finished(small_study.folder, arm, trainer, budget, fold, own)
    done = [
        run_row(f"t__{arm}__{budget}__0", "t", arm, budget, 0)
        for arm in TRAINERS
        for budget in (2, "all")
    ]
    files.write_json_lines(small_study.results, done)
    return small_study


def finished(
    folder: Path, arm: str, trainer: str, budget: int | str, fold: int, plans: dict
) -> None:
    name = f"t__{arm}__{budget}__0"
    common = {"dataset": DATASET, "fold": fold, "trainer": trainer, "plans": f"p-{arm}"}
    job = fine_tuning(run=name, task="t", arm=arm, budget=budget, tolerance=2.0, **common)
    jobs.write_job(folder / "runs" / name, job)
    files.write_json(folder / "runs" / name / jobs.OUTCOME, {"state": "done", "reason": None})
    files.write_json_lines(folder / "runs" / name / jobs.ROWS, [{"kind": "run", "run": name}])
    model = job.training.folder
    model.mkdir(parents=True)
    weights: dict = {"decoder": torch.zeros(1)}
    if arm != "nnunet":
        torch.manual_seed(fold)
        kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        weights = SwinUNETR(1, 4, True, **kwargs).state_dict()
    arguments = {"plans": plans, "configuration": "3d_fullres"}
    torch.save({"network_weights": weights, "init_args": arguments}, model / "checkpoint_final.pth")


def test_pretrained_few_and_many_are_compared_once(study):
    said: list[str] = []
    new = reuse.measure_missing(study, volumes=2, print_fn=said.append)
    results = Results.read(study.results)
    assert {(row.first, row.second) for row in results.cka} == {
        ("scratch 2", "scratch all"),
        ("smit pretrained", "smit 2"), ("smit pretrained", "smit all"), ("smit 2", "smit all"),
    }  # fmt: skip
    assert {row.volumes for row in results.cka} == {2}
    assert {(row.arm, row.budget) for row in results.attention} == {
        ("scratch", 2), ("scratch", "all"), ("smit", "pretrained"), ("smit", 2), ("smit", "all"),
    }  # fmt: skip
    assert new == len(results.cka) + len(results.attention)
    assert len(said) == 2
    before = study.results.read_text(encoding="utf-8")
    assert reuse.measure_missing(study, volumes=2) == 0
    assert study.results.read_text(encoding="utf-8") == before


def test_a_killed_measurement_goes_on(study):
    reuse.measure_missing(study, volumes=1)
    lines = study.results.read_text(encoding="utf-8").splitlines(keepends=True)
    study.results.write_text("".join(lines[: len(lines) // 2]))
    assert reuse.measure_missing(study, volumes=1) > 0
    again = study.results.read_text(encoding="utf-8").splitlines(keepends=True)
    assert sorted(again) == sorted(lines)


def measured_again(study: Study, volumes: int = 1) -> set[str]:
    """The encoders of the rows that a measurement has added."""
    before = len(study.results.read_text(encoding="utf-8").splitlines())
    new = reuse.measure_missing(study, volumes)
    rows = files.read_json_lines(study.results)[before:]
    assert len(rows) == new
    return {name for row in rows for name in KINDS[row["kind"]].from_json(row).encoders}


def test_what_was_trained_anew_is_measured_again(study):
    reuse.measure_missing(study, volumes=1)
    assert measured_again(study) == set()
    path = study.folder / "runs" / "t__scratch__all__0" / jobs.ROWS
    files.append_json_line(path, {"kind": "epoch", "run": "t__scratch__all__0", "epoch": 0})
    rows = files.read_json_lines(study.results)
    (cka,) = [row for row in rows if row["kind"] == "cka" and row["first"] == "scratch 2"]
    assert cka["trainings"][1] != jobs.training_fingerprint(path.parent)
    assert measured_again(study) == {"scratch 2", "scratch all"}
    last = files.read_json_lines(study.results)[-1]
    assert (last["budget"], last["trainings"]) == ("all", [jobs.training_fingerprint(path.parent)])
    assert measured_again(study) == set()
    assert len(Results.read(study.results).cka) == 4


def note(folder: Path, **more) -> None:
    """In job.json, as `nnssl_study run` does."""
    files.write_json(folder / jobs.JOB, files.read_json(folder / jobs.JOB) | more)


def test_plans_that_have_changed_are_refused(study, nnunet_env):
    """They may name another pretrained encoder than the runs started from."""
    path = nnunet_env["nnUNet_preprocessed"] / DATASET / "p-smit.json"
    plans = files.read_json(path)
    note(study.folder / "runs" / "t__smit__all__0", planned=files.fingerprint(plans))
    files.write_json(path, plans | {"nnssl_recipe": {"epochs": 3}})
    with pytest.raises(StudyError, match=r"p-smit\.json has changed since t__smit__all"):
        reuse.measure_missing(study, volumes=1)
    files.write_json(path, plans)
    assert reuse.measure_missing(study, volumes=1) > 0


def test_another_pretrained_checkpoint_is_measured_again(study):
    jobs_of_smit = [study.folder / "runs" / f"t__smit__{budget}__0" for budget in (2, "all")]
    reuse.measure_missing(study, volumes=1)  # of an earlier version: the hash is not noted
    for folder in jobs_of_smit:
        note(folder, checkpoint="a")
    assert measured_again(study) == set()
    for folder in jobs_of_smit:
        note(folder, checkpoint="b")
    rows = files.read_json_lines(study.results)
    for row in rows:
        if row["kind"] == "attention" and row["budget"] == "pretrained":
            row["trainings"] = ["a"]
    files.write_json_lines(study.results, rows)
    assert measured_again(study) == {"smit pretrained"}
    assert files.read_json_lines(study.results)[-1]["trainings"] == ["b"]
    assert measured_again(study) == set()


@pytest.mark.parametrize(
    ("row", "message"),
    [({"task": "t"}, r"has no kind"), ({"kind": "cka", "task": "t"}, r"cka lacks first, second")],
)
def test_a_damaged_row_is_named(study, row, message):
    files.append_json_line(study.results, row)
    with pytest.raises(StudyError, match=rf"results\.jsonl.*{message}"):
        reuse.measure_missing(study, volumes=1)


def test_another_number_of_volumes_is_measured_again(study):
    reuse.measure_missing(study, volumes=1)
    assert measured_again(study, volumes=2) == {
        *("scratch 2", "scratch all", "smit pretrained", "smit 2", "smit all")
    }
    results = Results.read(study.results)
    assert {row.volumes for row in [*results.cka, *results.attention]} == {2}


def test_rows_of_an_earlier_version_count(study):
    """They say nothing of their trainings, and those of attention nothing of their volumes."""
    reuse.measure_missing(study, volumes=1)
    rows = files.read_json_lines(study.results)
    for row in rows:
        row.pop("trainings", None)
        if row["kind"] == "attention":
            del row["volumes"]
    files.write_json_lines(study.results, rows)
    assert measured_again(study, volumes=2) == set()
