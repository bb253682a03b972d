"""Other networks beside ours in a study: nnU-Net's ResEnc and Primus, and what is trained
elsewhere.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from synthetic_plans import nnunet_plans
from synthetic_study import ARMS, TASKS, finished, study
from synthetic_trainers import DATASET_JSON, batch, synthetic_plans, synthetic_trainer, train_epoch

from nnssl import files, trainer_path
from nnssl.recipe import RECIPE
from nnssl.study.design import splits
from nnssl.study.execution import (
    collect,
    datasets,
    fine_tuning,
    job,
    jobs,
    requirements,
    runs,
    shell,
)
from nnssl.study.execution.arm_plans import Plans
from nnssl.study.execution.datasets import Dataset
from nnssl.study.execution.job_records import FineTuningJob, StudyError
from nnssl.study.execution.nnunet_training import NnunetTraining
from nnssl.study.execution.runs import ArmOnTask
from nnssl.study.report import write
from nnssl.types import PREPROCESSED, RESULTS

DATASET = "Dataset902_Phantoms"
RESENC = {"name": "resenc", "start": "default", "plans": "nnUNetResEncUNetMPlans"}
PRIMUS = {"name": "primus", "start": "default", "trainer": "DefaultPrimusSTrainer"}
MAE = {"name": "mae", "start": "elsewhere", "trainer": "PretrainedTrainer", "plans": "ptPlans__mae"}


@pytest.fixture
def dataset(nnunet_env) -> Path:
    """The preprocessed folder of a dataset that nnU-Net has planned and preprocessed."""
    about = {"numTraining": 1, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    files.write_json(nnunet_env["nnUNet_raw"] / DATASET / "dataset.json", about)
    folder = nnunet_env["nnUNet_preprocessed"] / DATASET
    for name in ("data/a.pkl", "gt_segmentations/a.nii.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    planned(folder, "nnUNetPlans")
    return folder


def planned(folder: Path, name: str) -> None:
    configuration = {"data_identifier": "data", "patch_size": [20, 48, 40], "batch_size": 2}
    content = {"plans_name": name, "configurations": {"3d_fullres": configuration}}
    files.write_json(folder / f"{name}.json", content)


def test_nnunets_residual_encoder_is_planned_by_its_own_planner(tmp_path, dataset, monkeypatch):
    small_study = study(tmp_path, arms=[*ARMS, RESENC], recipe={"epochs": 4, "iterations": 10})
    residual = (Dataset("902"), "3d_fullres", "nnUNetResEncUNetMPlans")
    assert residual in datasets.wanted(small_study)
    typed = []

    def execute(command, *_):
        typed.append(command)
        planned(dataset, "nnUNetResEncUNetMPlans")

    monkeypatch.setattr(shell, "execute", execute)
    datasets.preprocess(small_study, shell.Foreground(tmp_path, print))
    # alone, since the data are those of nnU-Net's own plans
    assert typed == [["nnUNetv2_plan_experiment", "-d", "902", "-pl", "nnUNetPlannerResEncM"]]
    (task,) = small_study.tasks
    plans = Plans(ArmOnTask(small_study, task, small_study.arms[-1]))
    written = plans.provide(shell.Foreground(tmp_path, print))
    assert plans.path.name == "small-organs-resenc.json"
    assert (written[RECIPE]["epochs"], written[RECIPE]["iterations"]) == (4, 10)
    with pytest.raises(StudyError, match="has no plans nnUNetOther"):
        Dataset("902").commands("3d_fullres", "nnUNetOther")


def test_plans_that_somebody_has_written_since_are_made_again(tmp_path, dataset, monkeypatch):
    """By another study of this name, or by nnssl_plan: their recipe is not this study's."""
    arms = [{"name": "scratch", "start": "scratch", "encoder": "tiny"}]
    small_study, typed = study(tmp_path, arms=arms), []
    planned(dataset, "nnUNetPlans")
    plans = Plans(ArmOnTask(small_study, small_study.tasks[0], small_study.arms[0]))

    def execute(command, *_):
        typed.append(command)
        files.write_json(plans.path, {"recipe": "ours"})

    monkeypatch.setattr(shell, "execute", execute)
    here = shell.Foreground(tmp_path, print)
    for _ in range(2):
        assert plans.provide(here) == {"recipe": "ours"}
    assert len(typed) == 1
    files.write_json(plans.path, {"recipe": "of another study"})
    assert plans.provide(here) == {"recipe": "ours"}
    assert len(typed) == 2
    (record,) = (small_study.folder / "plans").iterdir()
    noted = files.read_json(record)
    files.write_json(record, {"fingerprint": noted["fingerprint"]})  # as earlier versions did
    assert plans.provide(here) == {"recipe": "ours"}
    assert len(typed) == 2


def test_plans_of_begun_runs_stay_where_the_description_was_edited(tmp_path, dataset, monkeypatch):
    """Runs that wait in another call, or in a queue, are trained by them."""
    arms = [{"name": "scratch", "start": "scratch", "encoder": "tiny"}, RESENC | {"plans": None}]
    monkeypatch.setattr(fine_tuning, "append_splits", lambda _: {(2, 0): SPLIT})
    files.write_json(dataset / "nnUNetPlans.json", nnunet_plans())

    def execute(command, *_):
        files.write_json(path_of("scratch"), {"epochs": command[command.index("--epochs") + 1]})

    monkeypatch.setattr(shell, "execute", execute)

    def path_of(arm: str) -> Path:
        return dataset / f"small-organs-{arm}.json"

    here, paths = shell.Foreground(tmp_path, print), [path_of("scratch"), path_of("resenc")]
    pairs = runs.all_pairs(study(tmp_path, arms=arms, recipe={"epochs": 10}))
    begun = fine_tuning.write_jobs(pairs, here)
    before = [path.read_bytes() for path in paths]
    edited = study(tmp_path, arms=arms, recipe={"epochs": 20})
    with pytest.raises(StudyError, match="was started with other settings"):
        fine_tuning.write_jobs(runs.all_pairs(edited), here)
    assert [path.read_bytes() for path in paths] == before
    files.write_json(paths[0], {"epochs": "20"})  # by hand
    files.write_json(dataset / splits.FILE, [{"train": ["a"], "val": ["b"]}])
    reason = job.run_job(begun[0].folder)["reason"]
    assert "small-organs-scratch.json has changed since organs__scratch__2__0 was begun" in reason


SPLIT = splits.Split(0, ("a",), ("b",))


def test_plans_by_which_another_study_has_trained_are_refused(tmp_path, dataset, monkeypatch):
    arms = [{"name": "scratch", "start": "scratch", "encoder": "tiny"}]
    small_study = study(tmp_path, arms=arms)
    planned(dataset, "nnUNetPlans")
    plans = Plans(ArmOnTask(small_study, small_study.tasks[0], small_study.arms[0]))
    files.write_json(plans.path, {"recipe": "of another study"})
    model = f"SwinScratchTrainer__{small_study.name}-organs-scratch__3d_fullres"
    Path(os.environ[RESULTS], DATASET, model).mkdir(parents=True)
    monkeypatch.setattr(shell, "execute", lambda *_: pytest.fail("nothing is planned"))
    with pytest.raises(StudyError, match=r"this study did not make them.*another name"):
        plans.provide(shell.Foreground(tmp_path, print))
    assert files.read_json(plans.path) == {"recipe": "of another study"}


def test_another_networks_plans_make_another_training(tmp_path):
    split, prints = splits.Split(5, ["a"], ["b"]), set()
    for arm in (RESENC, RESENC | {"plans": "nnUNetResEncUNetLPlans"}, RESENC | {"plans": None}):
        small_study = study(tmp_path, arms=[ARMS[0], arm])
        about = fine_tuning.job(runs.all_runs(small_study)[1], DATASET, split, plans={})
        prints.add(about.fingerprint)
    assert len(prints) == 3


def test_a_residual_encoder_trains_as_long_as_the_recipe_says(nnunet_env, one_thread):
    plans = synthetic_plans({"epochs": 3, "iterations": 2})
    module = "dynamic_network_architectures.architectures.unet"
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": f"{module}.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": "torch.nn.Conv3d",
            "kernel_sizes": 3, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            "n_blocks_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1], "conv_bias": True,
            "norm_op": "torch.nn.InstanceNorm3d", "norm_op_kwargs": {"affine": True},
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }  # fmt: skip
    trainer = synthetic_trainer("DefaultNetworkTrainer", plans)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    assert type(trainer.network).__name__ == "ResidualEncoderUNet"
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (3, 2)
    train_epoch(trainer, 0)


def test_nnunets_network_is_not_trained_by_plans_of_ours(nnunet_env, one_thread, tmp_path):
    plans = synthetic_plans()
    # names our network in the plans, as nnssl_plan does
    synthetic_trainer("SwinScratchTrainer", plans)
    with pytest.raises(ValueError, match=r"-p nnUNetPlans, or with a copy(.|\n)*nnssl_recipe"):
        synthetic_trainer("DefaultNetworkTrainer", plans).initialize()
    synthetic_trainer("DefaultPrimusSTrainer", plans).initialize()


def primus(**recipe):
    trainer = synthetic_trainer(
        "DefaultPrimusSTrainer", synthetic_plans({"iterations": 1, **recipe})
    )
    trainer.initialize()
    return trainer


def test_primus_trains_as_long_as_the_recipe_says_and_goes_on_where_it_stopped(
    nnunet_env, one_thread, tmp_path
):
    trainer = primus(epochs=40)
    assert type(trainer.network).__name__ == "Primus"
    assert (trainer.num_epochs, trainer.warmup_duration_whole_net) == (40, 2)
    rates = []
    for epoch in range(3):
        train_epoch(trainer, epoch, steps=1)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:2] == pytest.approx([1.5e-4, 3e-4])
    assert rates[2] == pytest.approx(3e-4)
    trainer.save_checkpoint(str(tmp_path / "stopped.pth"))
    second = primus(epochs=40)
    second.load_checkpoint(str(tmp_path / "stopped.pth"))
    assert (second.current_epoch, second.training_stage) == (3, "train")
    image = batch(trainer)["data"]
    with torch.inference_mode():
        logits = [each.network.eval()(image) for each in (trainer, second)]
    assert logits[0].shape[1] == len(DATASET_JSON["labels"])
    torch.testing.assert_close(*logits)
    train_epoch(second, 3, steps=1)
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * (37 / 38) ** 0.9)


def test_primus_gets_patches_of_whole_cubes_and_none_in_2d(nnunet_env):
    plans = synthetic_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [20, 48, 36]
    trainer = synthetic_trainer("DefaultPrimusMTrainer", plans)
    assert list(trainer.configuration_manager.patch_size) == [24, 48, 40]
    with pytest.raises(ValueError, match="Primus is a 3D network, and 2d has"):
        synthetic_trainer("DefaultPrimusMTrainer", synthetic_plans(), "2d")


# -- elsewhere


def ready(folder: Path, **arm) -> tuple[runs.StudyRun, FineTuningJob]:
    """The run of an arm that is trained elsewhere, and its job."""
    small_study = study(folder, arms=[ARMS[0], MAE | arm])
    one = runs.all_runs(small_study)[1]
    entries = [{"train": ["b"], "val": ["a"]}] * 5 + [{"train": ["a"], "val": ["b", "c"]}]
    files.write_json(Path(os.environ[PREPROCESSED], DATASET, splits.FILE), entries)
    about = fine_tuning.job(one, DATASET, splits.Split(5, ["a"], ["b", "c"]), plans={})
    one.begin(about)
    return one, about


def program(folder: Path, cases: tuple[str, ...] = ("b", "c")) -> Path:
    """Another environment's program: it validates without training, and sees nothing of ours."""
    path = folder / "their_train"
    path.write_text(
        f"#!{sys._base_executable}\n"
        "import json, os, pathlib, sys\n"
        f"assert {trainer_path.VARIABLE!r} not in os.environ and 'PYTHONPATH' not in os.environ\n"
        "dataset, configuration, fold, _, trainer, _, plans, *_ = sys.argv[1:]\n"
        "top = pathlib.Path(os.environ['nnUNet_results'], dataset,\n"
        "    f'{trainer}__{plans}__{configuration}')\n"
        "place = top / f'fold_{fold}' / 'validation'\n"
        "place.mkdir(parents=True)\n"
        "(top / 'dataset.json').write_text(json.dumps({'file_ending': '.nii.gz'}))\n"
        f"cases = [{{'reference_file': f'/x/{{c}}.nii.gz'}} for c in {list(cases)}]\n"
        "(place / 'summary.json').write_text(json.dumps({'metric_per_case': cases}))\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_what_is_trained_by_hand_says_what_to_type_and_is_collected(tmp_path, dataset, monkeypatch):
    one, about = ready(tmp_path)
    assert (one.plans, one.trainer, one.epochs) == ("ptPlans__mae", "PretrainedTrainer", 0)
    outcome = job.run_job(one.folder)
    assert outcome["state"] == "failed"
    line = "nnUNetv2_train_pretrained Dataset902_Phantoms 3d_fullres 5 -tr PretrainedTrainer"
    assert f"in the environment of its trainer, type: {line} -p ptPlans__mae" in outcome["reason"]
    words = about.training.command("cpu", str(program(tmp_path)))
    monkeypatch.setattr(shell, "environment", lambda: {"nnUNet_results": str(results_of())})
    shell.execute(words, tmp_path / "by_hand.txt")
    monkeypatch.setattr(job, "rows", lambda *_: [])
    (one.folder / jobs.OUTCOME).unlink()
    assert job.run_job(one.folder)["state"] == "done"


def results_of() -> Path:
    return NnunetTraining("", "", 0, "", "").folder.parents[1]


def test_a_program_of_another_environment_trains_it(tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    monkeypatch.setattr(job, "rows", lambda *_: [])
    one, about = ready(tmp_path, train="their_train")
    with pytest.raises(StudyError, match=r"do not exist:\n  arm mae: .*their_train"):
        requirements.check_inputs(study(tmp_path, arms=[ARMS[0], MAE | {"train": "their_train"}]))
    assert about.elsewhere == str(program(tmp_path))
    assert job.run_job(one.folder) == {"state": "done", "reason": None}
    assert "their_train" in (one.folder / jobs.LOG).read_text()


def test_what_was_trained_elsewhere_is_collected_once(tmp_path, dataset):
    one, about = ready(tmp_path)
    files.write_json_lines(one.folder / jobs.ROWS, [])
    files.write_json(one.folder / jobs.OUTCOME, {"state": "done", "reason": None})
    one.begin(about)
    assert one.is_done


def test_results_on_other_cases_are_refused(tmp_path, dataset):
    one, _ = ready(tmp_path, train=str(program(tmp_path, cases=("b", "x"))))
    reason = job.run_job(one.folder)["reason"]
    assert "1 of 2 do not belong to it, 1 of its cases are missing" in reason


def test_plans_that_upstream_has_not_made_yet_are_named_before_anything_runs(tmp_path, dataset):
    small_study = study(tmp_path, arms=[ARMS[0], MAE])
    message = (
        "no plans ptPlans__mae, .*existing plans: nnUNetPlans. .*preprocess_like_nnssl -d 902 -n"
    )
    with pytest.raises(StudyError, match=message):
        requirements.check_inputs(small_study)
    planned(dataset, "ptPlans__mae")
    requirements.check_inputs(small_study)
    assert datasets.wanted(small_study) == [(Dataset("902"), "3d_fullres", "nnUNetPlans")]


def test_one_table_of_the_report_holds_all_networks(tmp_path):
    small_study = study(tmp_path, arms=[*ARMS, RESENC, PRIMUS, MAE], seeds=[0, 1], tasks=TASKS)
    for number, one in enumerate(runs.all_runs(small_study)):
        finished(one, dice=0.7 + number / 100)
    collect.collect(small_study)
    page = write.write(small_study.results, tmp_path / "report").read_text(encoding="utf-8")
    scores = (tmp_path / "report" / "tables" / "scores.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in scores[1:]] == [
        "scratch", "smit", "resenc", "primus", "mae"
    ]  # fmt: skip
    compared = (tmp_path / "report" / "tables" / "comparisons.csv").read_text()
    assert all(name in compared for name in ("smit", "resenc", "primus", "mae"))
    assert "DefaultPrimusSTrainer" in page
