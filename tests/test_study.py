"""A study from its description to results.jsonl: which commands it types, and all of it through
nnU-Net, made tiny.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import commands
import pytest
import torch
from micro import ENCODER
from synthetic_checkpoints import pretrained
from synthetic_study import ARMS, TASKS, study

from nnssl import checkpoint, files
from nnssl.commands import CommandError
from nnssl.encoder.swin import Swin
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.study.design import splits, values
from nnssl.study.design.description import Study
from nnssl.study.execution import (
    collect,
    datasets,
    executor,
    fine_tuning,
    job,
    jobs,
    pretraining,
    requirements,
    runs,
    shell,
    supervised,
)
from nnssl.study.execution.arm_plans import Plans
from nnssl.study.execution.datasets import Dataset
from nnssl.study.execution.job_records import Outcome, PretrainingJob, StudyError
from nnssl.study.execution.runs import ArmOnTask

DATASET = "Dataset902_Phantoms"


@pytest.fixture
def dataset(nnunet_env) -> dict[str, Path]:
    """nnU-Net's folders with a dataset that nobody has planned."""
    about = {"numTraining": 6, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    files.write_json(nnunet_env["nnUNet_raw"] / DATASET / "dataset.json", about)
    return nnunet_env


def plan_command(study: Study, arm: int) -> list[str] | None:
    """`nnssl_plan ...` of the arm of that number on the first task."""
    return Plans(ArmOnTask(study, study.tasks[0], study.arms[arm])).command


def pretrainings(study: Study) -> dict[str, PretrainingJob]:
    return {start.arm.name: start.job for start in pretraining.all_starts(study)}


def test_every_start_has_its_commands(tmp_path, dataset):
    arms = [
        *ARMS,
        {
            "name": "byol",
            "start": "pretrain",
            "method": "byol",
            "datasets": [902],
            "encoder": "tiny",
            "options": {
                "dims": 2,
                "epochs": 5,
                "crop": [32, 32],
                "fp32": True,
                "np": 3,
                "compile": False,
            },
        },
        {"name": "imagenet", "start": "imagenet", "weights": "swin.pth", "options": {"rgb": True}},
        {"name": "labels", "start": "supervised", "dataset": 902, "configuration": "2d"},
        {"name": "nnunet", "start": "default"},
        {
            "name": "after",
            "start": "pretrain",
            "method": "byol",
            "scans": ["scans"],
            "after": "imagenet",
        },
    ]
    small_study = study(
        tmp_path, arms=arms, recipe={"epochs": 3, "mirror": False, "trainer": "SwinFrozenTrainer"}
    )
    jobs_by_start = pretrainings(small_study)
    folder = small_study.folder / "starts"
    assert list(jobs_by_start) == ["byol", "imagenet", "labels", "after"]
    (command,) = jobs_by_start["byol"].commands
    assert command[:9] == [
        "nnssl_pretrain",
        "-m",
        "byol",
        "-d",
        "902",
        "-a",
        "tiny",
        "-device",
        "cpu",
    ]
    assert command[9:11] == ["-o", str(folder / "byol/weights")]
    assert command[11:] == [
        "--dims",
        "2",
        "--epochs",
        "5",
        "--crop",
        "32",
        "32",
        "--fp32",
        "-np",
        "3",
        "--c",
    ]
    weights, converted = (
        str(tmp_path / "swin.pth"),
        str(folder / "imagenet/weights/checkpoint_final.pth"),
    )
    assert jobs_by_start["imagenet"].commands == [
        ["nnssl_convert", weights, "-o", converted, "--rgb"]
    ]
    (command,) = jobs_by_start["after"].commands
    assert command[3:7] == ["-i", str(tmp_path / "scans"), "--from", converted]
    plan, train, export = jobs_by_start["labels"].commands
    assert plan[:3] + plan[-5:] == [
        "nnssl_plan",
        "-d",
        "902",
        "-a",
        "smit",
        "--epochs",
        "3",
        "--no-mirror",
    ]
    assert train[:5] == ["nnUNetv2_train", DATASET, "2d", "all", "-tr"]
    assert jobs_by_start["labels"].trains.name == "fold_all"
    longer = pretrainings(study(tmp_path, arms=arms, recipe={"epochs": 9}))
    changed = [
        name
        for name in jobs_by_start
        if jobs_by_start[name].fingerprint != longer[name].fingerprint
    ]
    assert changed == ["labels"]  # the only one that a recipe trains
    assert export[1:3] == ["-m", "nnssl.study.execution.supervised"]
    plans = {
        arm.name: plan_command(small_study, number) for number, arm in enumerate(small_study.arms)
    }
    assert plans["nnunet"] is None
    assert plans["smit"][5:9] == ["--name", "small-organs-smit", "-c", str(tmp_path / "smit.pth")]
    assert plans["scratch"][7:9] == plans["smit"][7:9]  # same encoder and intensities
    trainers = {one.arm.name: one.trainer for one in runs.all_runs(small_study)}
    assert (trainers["scratch"], trainers["smit"]) == ("SwinScratchTrainer", "SwinFrozenTrainer")
    assert trainers["nnunet"] == "DefaultNetworkTrainer"


SWIN = {"name": "swin", "start": "imagenet", "weights": "a.pth"}
BYOL = {"start": "pretrain", "method": "byol"}
AFTER = {"name": "after", "after": "swin", "datasets": [902], **BYOL}


def begin_starts(study: Study) -> None:
    """All of its pretrainings, which are done from now on."""
    for start in pretraining.all_starts(study):
        start.begin(start.job)
        jobs.write_outcome(start.folder, Outcome("done"))


def test_a_pretraining_after_an_arm_that_has_changed_is_another_one(tmp_path, dataset):
    before, edited = ([ARMS[0], SWIN | {"weights": name}, AFTER] for name in ("a.pth", "b.pth"))
    begin_starts(study(tmp_path, arms=before))
    begin_starts(study(tmp_path, arms=before))
    run, now = (runs.all_runs(study(tmp_path, arms=arms))[-1] for arms in (before, edited))
    about = fine_tuning.job(run, DATASET, splits.Split(5, ("a",), ("b",)), plans={})
    run.begin(about)
    assert not collect.is_described_otherwise(run)
    assert collect.is_described_otherwise(now)
    jobs.write_job(run.folder / "earlier", replace(about, after=None))
    assert not jobs.write_job(run.folder / "earlier", about), "not noted: it still counts"
    folder = study(tmp_path, arms=edited).folder / "starts"
    with pytest.raises(StudyError, match=r"swin was started with other settings.*remove .*swin"):
        begin_starts(study(tmp_path, arms=edited))
    shutil.rmtree(folder / "swin")  # as the message advises
    with pytest.raises(StudyError, match=r"after was started with other settings.*comes after"):
        begin_starts(study(tmp_path, arms=edited))
    noted = files.read_json(folder / "after" / jobs.JOB)
    del noted["after"], noted["described"]  # as earlier versions wrote it
    files.write_json(folder / "after" / jobs.JOB, noted)
    begin_starts(study(tmp_path, arms=edited))


def test_a_study_whose_folder_was_moved_continues(tmp_path, dataset):
    here, there = tmp_path / "here", tmp_path / "there"
    arms = [ARMS[0], SWIN, AFTER, {"name": "scans", "scans": ["scans"], **BYOL}]
    here.mkdir()
    begin_starts(study(here, arms=arms))
    here.rename(there)
    begin_starts(study(there, arms=arms))
    job_file = there / "study" / "starts" / "swin" / jobs.JOB
    assert files.read_json(job_file)["makes"].startswith(str(there))
    with pytest.raises(StudyError, match="other settings"):
        begin_starts(study(there, arms=[arms[0], SWIN | {"weights": "b.pth"}, *arms[2:]]))


def test_starts_of_earlier_versions_are_still_done(tmp_path, dataset, monkeypatch):
    """Their job.json has one fingerprint, with absolute paths."""
    monkeypatch.setattr(values, "path", lambda entry, at: Path("/data", str(entry)))
    labels = {"name": "labels", "start": "supervised", "dataset": 902, "configuration": "2d"}
    small_study = study(tmp_path, arms=[ARMS[0], AFTER, labels, SWIN], recipe={"epochs": 3})
    found = {name: job.fingerprint for name, job in pretrainings(small_study).items()}
    assert found == {"after": "a7942f9d39a9", "labels": "d998b13eee07", "swin": "9fad070925bf"}


def test_a_random_start_is_like_the_arm_it_names_or_a_preset(tmp_path, dataset):
    other = {"name": "other", "start": "checkpoint", "checkpoint": "other.pth"}
    for scratch, expected in (
        ({"like": "other"}, ["-c", str(tmp_path / "other.pth")]),
        ({"encoder": "tiny"}, ["-a", "tiny"]),
    ):
        small_study = study(tmp_path, arms=[ARMS[0] | scratch, ARMS[1], other])
        assert plan_command(small_study, 0)[7:9] == expected


def test_only_what_is_missing_is_preprocessed(tmp_path, dataset):
    (command,) = Dataset("902").commands("3d_fullres")
    assert command[:5] == ["nnUNetv2_plan_and_preprocess", "-d", "902", "-c", "3d_fullres"]
    folder = dataset["nnUNet_preprocessed"] / DATASET
    configurations = {
        "3d_fullres": {"data_identifier": "data"},
        "cascade": {"inherits_from": "3d_fullres"},
    }
    files.write_json(folder / "nnUNetPlans.json", {"configurations": configurations})
    (command,) = Dataset("902").commands("cascade")
    assert command[0] == "nnUNetv2_preprocess"
    (folder / "data").mkdir()
    for number in range(6):
        (folder / "data" / f"{number}.pkl").touch()
    (command,) = Dataset("902").commands("3d_fullres")  # nnU-Net copies the labels last
    assert command[0] == "nnUNetv2_preprocess"
    (folder / "gt_segmentations").mkdir()
    for number in range(6):
        (folder / "gt_segmentations" / f"{number}.nii.gz").touch()
    assert Dataset("902").commands("3d_fullres") == []
    with pytest.raises(
        StudyError, match="no configuration 2d; nnUNetPlans has 3d_fullres, cascade"
    ):
        Dataset("902").commands("2d")


def planned(folder: Path) -> None:
    files.write_json(
        folder / "nnUNetPlans.json", {"configurations": {"3d_fullres": {"data_identifier": "data"}}}
    )


def stored(folder: Path, cases: int) -> None:
    """As nnU-Net's preprocessing: all that was there is removed first, and the labels come last."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    for name, ending in (("data", ".pkl"), ("gt_segmentations", ".nii.gz")):
        for number in range(cases):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{number}{ending}").touch()
            time.sleep(0.01)


def test_two_calls_at_once_preprocess_once(tmp_path, dataset, monkeypatch):
    """The second one waits: it would empty the folder that the first one fills."""
    small_study, folder = study(tmp_path), dataset["nnUNet_preprocessed"] / DATASET
    planned(folder)
    typed, locks = [], []

    def execute(command, log, lock=None):
        typed.append(command[0])
        locks.append(lock)
        stored(folder, 6)

    monkeypatch.setattr(shell, "execute", execute)
    with ThreadPoolExecutor(2) as pool:
        here = shell.Foreground(tmp_path, lambda _: None)
        calls = [pool.submit(datasets.preprocess, small_study, here) for _ in range(2)]
        assert [call.result() for call in calls] == [None, None]
    assert typed == ["nnUNetv2_preprocess"]
    assert None not in locks, "the command holds the lock too, should its study be killed"


def test_cases_that_preprocessing_leaves_out_are_told(tmp_path, dataset, monkeypatch):
    folder = dataset["nnUNet_preprocessed"] / DATASET
    planned(folder)
    monkeypatch.setattr(shell, "execute", lambda *_: stored(folder, 4))
    line = "nnUNetv2_preprocess -d 902 -plans_name nnUNetPlans -c 3d_fullres"
    with pytest.raises(StudyError, match=f"4 of 6 cases are stored .*type: {line}"):
        datasets.preprocess(study(tmp_path), shell.Foreground(tmp_path, lambda _: None))
    (folder / "nnUNetPlans.json").unlink()
    monkeypatch.setattr(shell, "execute", lambda *_: None)
    with pytest.raises(StudyError, match=r"0 of 6 .*type: nnUNetv2_plan_and_preprocess -d 902"):
        datasets.preprocess(study(tmp_path), shell.Foreground(tmp_path, lambda _: None))


def test_a_task_may_stand_on_other_plans_of_nnunets(tmp_path, dataset):
    small_study = study(tmp_path, tasks=[TASKS[0] | {"dataset": 902, "plans": "coarse"}])
    assert datasets.wanted(small_study)[0] == (Dataset("902"), "3d_fullres", "coarse")
    with pytest.raises(
        StudyError, match="nnUNetv2_plan_experiment -d 902 -overwrite_plans_name coarse"
    ):
        Dataset("902").commands("3d_fullres", "coarse")
    configurations = {"3d_fullres": {"data_identifier": "coarse_data"}}
    files.write_json(
        dataset["nnUNet_preprocessed"] / DATASET / "coarse.json", {"configurations": configurations}
    )
    (command,) = Dataset("902").commands("3d_fullres", "coarse")
    assert command[:5] == ["nnUNetv2_preprocess", "-d", "902", "-plans_name", "coarse"]
    assert plan_command(small_study, 1)[3:5] == ["-p", "coarse"]


def test_a_dataset_may_be_named(tmp_path, dataset):
    (command,) = Dataset(DATASET).commands("3d_fullres")
    assert command[1:3] == ["-d", "902"]  # nnU-Net's command takes nothing else
    small_study = study(tmp_path, tasks=[TASKS[0] | {"dataset": DATASET}])
    assert plan_command(small_study, 1)[:3] == ["nnssl_plan", "-d", "902"]


def test_a_random_starts_encoder_makes_it_another_training(tmp_path):
    split = splits.Split(5, ["a"], ["b"])
    prints = set()
    for encoder in ("tiny", "smit"):
        small_study = study(tmp_path, arms=[ARMS[0] | {"encoder": encoder}])
        about = fine_tuning.job(runs.all_runs(small_study)[0], DATASET, split, plans={})
        prints.add(about.fingerprint)
    assert len(prints) == 2


def test_an_arm_may_have_only_some_of_the_budgets(tmp_path, dataset):
    small_study = study(
        tmp_path, budgets=[1, 2], seeds=[0], arms=[ARMS[0], ARMS[1] | {"budgets": [2]}]
    )
    assert [(one.arm.name, one.budget) for one in runs.all_runs(small_study)] == [
        ("scratch", 1),
        ("scratch", 2),
        ("smit", 2),
    ]


def test_what_is_not_there_is_said_before_anything_is_done(tmp_path, dataset, monkeypatch):
    with pytest.raises(StudyError, match=r"do not exist:\n  arm smit: .*smit.pth"):
        requirements.check_inputs(study(tmp_path))
    several = {"name": "byol", "start": "pretrain", "method": "byol", "scans": ["gone", "."]}
    with pytest.raises(StudyError, match=r"do not exist:\n  arm byol: .*gone"):
        requirements.check_inputs(study(tmp_path, arms=[ARMS[0], several]))
    with pytest.raises(StudyError, match="dataset 77 was not found"):
        Dataset("77").commands("2d")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(StudyError, match="export nnUNet_results="):
        requirements.check_inputs(study(tmp_path))


def test_an_encoder_of_several_channels_is_refused_before_it_is_trained(tmp_path, dataset):
    path = dataset["nnUNet_raw"] / DATASET / "dataset.json"
    files.write_json(path, files.read_json(path) | {"channel_names": {"0": "T1", "1": "T2"}})
    labels = {"name": "labels", "start": "supervised", "dataset": 902, "configuration": "2d"}
    with pytest.raises(StudyError, match="arm labels: dataset 902 has 2 channels"):
        requirements.check_inputs(study(tmp_path, arms=[ARMS[0], labels]))


def test_a_supervised_encoder_becomes_a_checkpoint(tmp_path):
    network = SwinUNETR(1, 2, encoder=ENCODER.to_dict(), decoder="light", axes=[2, 0, 1])
    properties = {"percentile_00_5": -900.0, "percentile_99_5": 1200.0, "mean": 50.0, "std": 200.0}
    configuration = {
        "patch_size": [12, 32, 28], "spacing": [3.0, 2.0, 1.0], "batch_size": 2,
        "normalization_schemes": ["CTNormalization"],
        "architecture": {"arch_kwargs": {"encoder": ENCODER.to_dict(), "axes": [2, 0, 1]}},
    }  # fmt: skip
    plans = {"dataset_name": DATASET, "configurations": {"3d_fullres": configuration},
             "foreground_intensity_properties_per_channel": {"0": properties}}  # fmt: skip
    content = {
        "init_args": {"plans": plans, "configuration": "3d_fullres"},
        "logging": {"lrs": [1.0]},
        "network_weights": network.state_dict(),
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    supervised.export_encoder(tmp_path, tmp_path / "out.pth")
    loaded = checkpoint.load(tmp_path / "out.pth")
    assert (loaded.method, loaded.spacing, loaded.crop) == (
        "supervised",
        (2.0, 1.0, 3.0),
        (32, 28, 12),
    )
    assert loaded.header["supervised"] is True
    assert (loaded.hu.low, loaded.hu.mean, loaded.hu.std) == (-900.0, 50.0, 200.0)
    passed_on = Swin(ENCODER)
    assert checkpoint.transfer(loaded, passed_on).matched == len(list(passed_on.parameters()))
    image = torch.randn(1, 1, 32, 28, 12)
    assert all(map(torch.equal, passed_on(image), network.encoder(image)))
    assert supervised.policy("ZScoreNormalization", {}) is None


def test_a_supervised_encoder_of_mapped_intensities_is_refused(tmp_path):
    arguments = {"encoder": ENCODER.to_dict(), "intensity": {"scale": [2.0]}}
    configuration = {"patch_size": [32, 32, 32], "architecture": {"arch_kwargs": arguments}}
    plans = {"dataset_name": DATASET, "configurations": {"3d_fullres": configuration}}
    content = {
        "init_args": {"plans": plans, "configuration": "3d_fullres"},
        "network_weights": SwinUNETR(1, 2, encoder=ENCODER.to_dict()).state_dict(),
    }
    torch.save(content, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="create its plans without a checkpoint"):
        supervised.export_encoder(tmp_path, tmp_path / "out.pth")


def in_this_process(
    words: list[str], log: Path, lock: int | None = None, env: dict[str, str] | None = None
) -> None:
    """In the place of `shell.execute`: the start of nnU-Net's commands takes longer than their work
    here.
    """
    assert env is None, "no arm of these studies is trained elsewhere"
    with log.open("a") as file:
        print(words, file=file)
    with pytest.MonkeyPatch.context() as patch:
        if words[0] == "nnUNetv2_train":
            # augmentation in this process; planning cannot have it so
            patch.setenv("nnUNet_n_proc_DA", "0")
        if commands.command(*words):
            raise CommandError(f"{words[0]} failed")


@pytest.mark.slow
def test_end_to_end_killed_in_the_middle(nnunet_env, tmp_path, monkeypatch, capsys):
    """init's twin by hand, run --dry-run, run, killed after the first training, run, run again."""
    from nnssl import phantoms

    raw = nnunet_env["nnUNet_raw"] / DATASET
    phantoms.write_nnunet_dataset(raw, training=range(6), unseen=range(6, 7), shape=(20, 40, 36))
    recipe = {
        "epochs": 1,
        "iterations": 2,
        "val_iterations": 1,
        "decoder": "light",
        "patch": [12, 32, 28],
        "batch_size": 2,
        "foreground": 1.0,
        "mirror": False,
    }
    pretrained(tmp_path).rename(tmp_path / "smit.pth")
    study(tmp_path, recipe=recipe)
    path = tmp_path / "study.yaml"

    # The study's handler of SIGTERM, which a forked worker of nnU-Net's would inherit, keeps it
    # from ending.
    commands.pools_of_threads(monkeypatch)

    def command(*arguments: str) -> str:
        assert commands.command("nnssl_study", *arguments) == 0
        return capsys.readouterr().out

    printed = command("run", str(path), "--dry-run")
    assert "$ nnUNetv2_plan_and_preprocess -d 902 -c 3d_fullres" in printed
    assert "Runs: 2, done 0, to do 2" in printed
    assert not (tmp_path / "study").exists()

    def one_after_the_other(folders, print_fn):
        for folder in folders:
            job.run_job(folder)

    def killed_after_the_first_training(command, *rest):
        in_this_process(command, *rest)
        if command[0] == "nnUNetv2_train":
            raise KeyboardInterrupt

    monkeypatch.setattr(executor, "chosen", lambda *_: one_after_the_other)
    monkeypatch.setattr(shell, "execute", killed_after_the_first_training)
    assert commands.command("nnssl_study", "run", str(path)) == 130  # as Ctrl-C ends a command
    assert "stopped" in capsys.readouterr().err
    results = tmp_path / "study" / "results.jsonl"
    assert [row["state"] for row in files.read_json_lines(results) if row["kind"] == "run"] == [
        "missing",
        "missing",
    ]

    trained = []
    monkeypatch.setattr(
        shell,
        "execute",
        lambda command, *rest: (trained.append(command), in_this_process(command, *rest)),
    )
    assert "Runs: 2 done, 0 failed, 0 missing" in command("run", str(path))
    # of the second run only
    assert [words[0] for words in trained if words[0] != "nnssl_plan"] == ["nnUNetv2_train"]
    rows = files.read_json_lines(results)
    latest = {row["run"]: row for row in rows if row["kind"] == "run"}
    assert {(row["state"], row["epochs"], row["cases"]) for row in latest.values()} == {
        ("done", 1, 2)
    }
    for name in ("organs__scratch__2__0", "organs__smit__2__0"):
        cases = [row for row in rows if row["kind"] == "case" and row["run"] == name]
        assert {row["label"] for row in cases} == {"liver", "kidney", "canal"}
        assert all(
            0 <= row["dice"] <= 1 and 0 <= row["surface_dice"] <= 1 and row["hd95"] >= 0
            for row in cases
        )
        (epoch,) = [row for row in rows if row["kind"] == "epoch" and row["run"] == name]
        assert epoch["seconds"] > 0
        assert epoch["train_loss"] is not None
    entries = files.read_json(nnunet_env["nnUNet_preprocessed"] / DATASET / splits.FILE)
    assert [len(entry["train"]) for entry in entries[5:]] == [2]
    once = results.read_bytes()
    assert "Cost: nothing left to do" in command("run", str(path))
    assert results.read_bytes() == once
    assert [words[0] for words in trained].count("nnUNetv2_train") == 1

    assert "new rows" in command("features", str(path), "--volumes", "2")
    page = Path(command("report", str(path)).split("Wrote ")[1].strip())
    assert "2 of 2 runs are finished" in page.read_text(encoding="utf-8")
    kinds = {row["kind"] for row in files.read_json_lines(results)}
    assert kinds == {"study", "run", "case", "epoch", "cka", "attention"}
    tables = {table.stem for table in (page.parent / "tables").iterdir()}
    # that is to a scratch that learnt something in its one epoch
    assert tables - {"convergence"} == {
        "scores",
        "labels",
        "comparisons",
        "ranks",
        "cka",
        "cka_layers",
        "attention",
        "runs",
    }
