"""Jobs and executors with small programs in the place of trainings: retries, restarts, kills,
results.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from synthetic_plans import nnunet_plans
from synthetic_study import ARMS, TASKS, fine_tuning, finished, program, study

from nnssl import files
from nnssl.commands import run_logged
from nnssl.study import command
from nnssl.study.design import splits
from nnssl.study.design.description import Study
from nnssl.study.design.splits import Split
from nnssl.study.execution import (
    collect,
    estimate,
    executor,
    job,
    jobs,
    orchestrate,
    requirements,
    runs,
    shell,
    slurm,
)
from nnssl.study.execution import fine_tuning as fine_tuning_jobs
from nnssl.study.execution.job_records import FineTuningJob, Outcome, PretrainingJob, StudyError
from nnssl.study.execution.jobs import Work
from nnssl.study.measurement import reuse
from nnssl.study.rows import CkaRow, RunRow
from nnssl.types import PREPROCESSED

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _source_tree(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def noting(folder: Path, then: str = "") -> str:
    """A program that notes each of its starts, makes its result, and continues with `then`."""
    return f"open(r'{folder}/starts', 'a').write('x'); open(r'{folder}/made', 'w'); {then}"


def count_starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


@pytest.mark.slow
def test_a_failure_is_tried_once_more_and_the_others_go_on(tmp_path):
    good, bad, shaky = (tmp_path / name for name in ("good", "bad", "shaky"))
    program(good, noting(good))
    program(bad, noting(bad, "raise SystemExit('the cause')"))
    program(shaky, noting(shaky, f"import sys; sys.exit(len(open(r'{shaky}/starts').read()) < 2)"))
    said: list[str] = []
    execute = executor.local([{"PLACE": "0"}, {"PLACE": "1"}])
    execute([bad, good, shaky], said.append)
    assert [jobs.outcome(folder).state for folder in (good, bad, shaky)] == [
        "done",
        "failed",
        "done",
    ]
    assert [count_starts(folder) for folder in (good, bad, shaky)] == [1, 2, 2]
    assert "ended with status 1" in jobs.outcome(bad).reason
    assert "the cause" in jobs.outcome(bad).reason
    assert sum("retrying once" in line for line in said) == 2
    execute([good, bad], said.append)
    # a new call tries what failed again, and nothing that is done
    assert (count_starts(good), count_starts(bad)) == (1, 4)


def test_places_are_the_jobs_environment(tmp_path, capsys, monkeypatch):
    folder = program(
        tmp_path / "one", f"import os; open(r'{tmp_path}/one/made', 'w').write(os.environ['GPU'])"
    )
    executor.local([{"GPU": "3"}])([folder], print)
    assert (folder / "made").read_text() == "3"
    printed = capsys.readouterr()
    assert "\n  one: done\n" in f"\n{printed.out}"
    assert "1/1" in printed.err  # the bar
    writers = program(
        tmp_path / "two",
        f"import os; open(r'{tmp_path}/two/made', 'w').write(os.environ['nnUNet_def_n_proc'])",
    )
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    monkeypatch.setattr("nnssl.limits.cores", lambda: 6)
    executor.local([{}, {}])([writers], print)  # six cores for two jobs
    assert (writers / "made").read_text() == "3"
    assert executor.device_slots("cpu", None) == [{}]
    assert executor.device_slots("cpu", 2) == [{}, {}]


@pytest.mark.parametrize(
    ("gpus", "visible", "parallel", "expected"),
    [
        (2, None, None, ["0", "1"]),
        (2, "3,7", None, ["3", "7"]),
        (2, "3,7", 3, ["3", "7", "3"]),
        (2, "GPU-5f,GPU-77", 1, ["GPU-5f"]),
    ],
)
def test_each_gpu_has_a_run_of_its_own(monkeypatch, gpus, visible, parallel, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert executor.device_slots("cuda", parallel) == [
        {"CUDA_VISIBLE_DEVICES": name} for name in expected
    ]


@pytest.mark.parametrize("option", ["--parallel", "--volumes"])
@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_count_below_one_is_refused_at_once(capsys, option, count):
    with pytest.raises(SystemExit):
        command.parser().parse_args(["run", "study.yaml", f"{option}={count}"])
    assert f"{option}: must be a whole number, at least 1, got '{count}'" in capsys.readouterr().err
    assert command.parser().parse_args(["run", "study.yaml", option, "2"])


def test_without_a_gpu_the_description_must_say_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(StudyError, match="write device: cpu"):
        executor.device_slots("cuda", None)


@pytest.mark.slow
def test_two_places_share_the_runs_and_none_is_used_twice_at_once(tmp_path):
    """Each program says when it held which place; on one place the times must not overlap."""
    code = """
import os, time
begin = time.monotonic()
time.sleep(0.3)
open(r'{0}/made', 'w').write(f"{{os.environ['GPU']}} {{begin}} {{time.monotonic()}}")
"""
    folders = [program(tmp_path / str(n), code.format(tmp_path / str(n))) for n in range(5)]
    executor.local([{"GPU": "0"}, {"GPU": "1"}])(folders, lambda text: None)
    held = [(folder / "made").read_text().split() for folder in folders]
    assert {place for place, *_ in held} == {"0", "1"}
    for place in "01":
        times = sorted((float(begin), float(end)) for where, begin, end in held if where == place)
        assert all(before[1] <= after[0] for before, after in pairwise(times))


def test_a_job_that_dies_silently_has_a_reason(tmp_path):
    folder = tmp_path / "killed"
    program(folder, noting(folder, "import os; os.kill(os.getppid(), 9)"))
    executor.local([{}])([folder], print)
    assert jobs.outcome(folder) == ("failed", "the process ended with status -9")
    assert count_starts(folder) == 2


def test_a_command_outlives_its_killed_job_and_nobody_works_beside_it(tmp_path):
    """kill -9 leaves a training running: who comes next waits for it."""
    folder = tmp_path / "one"
    note = (
        f"import time; f = open(r'{folder}/starts', 'ab', 0); f.write(b'<'); time.sleep(1.5); "
        "f.write(b'>')"
    )
    code = f"{note}; open(r'{folder}/made', 'w')"
    program(folder, code)
    first = subprocess.Popen([sys.executable, "-m", "nnssl.study.execution.job", str(folder)])
    while not (folder / "starts").exists() or not (folder / "starts").read_text():
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert job.run_job(folder)["state"] == "done"
    assert (folder / "starts").read_text() == "<><>"


@pytest.mark.parametrize("ending", ["sys.exit(1)", "time.sleep(600)"])
def test_what_a_command_started_ends_with_it(tmp_path, ending):
    """nnU-Net's augmentation does not notice when the training is ended, and would hold the job's
    lock for ever.
    """
    helper = "import time; time.sleep(600)"
    note = tmp_path / "helper"
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', "
        f"{helper!r}]); open({str(note)!r}, 'w').write(f'{{child.pid}} '); {ending}"
    )

    def wait(process: subprocess.Popen) -> None:
        while not (note.is_file() and note.read_text().endswith(" ")):
            time.sleep(0.01)
        if "sleep" in ending:
            raise KeyboardInterrupt
        process.wait()

    with suppress(KeyboardInterrupt):
        run_logged([sys.executable, "-c", code], tmp_path / "log", dict(os.environ), wait)
    helper = int(note.read_text())
    deadline = time.monotonic() + 30
    while running(helper) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(helper)


def running(pid: int) -> bool:
    """A zombie, whose parent has not looked, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_start_that_makes_nothing_has_failed(tmp_path):
    folder = program(tmp_path / "one", "pass")
    assert job.run_job(folder)["state"] == "failed"
    assert "does not exist" in jobs.outcome(folder).reason


def test_checkpoints_cut_short_are_not_continued_from(tmp_path):
    whole, truncated = tmp_path / "checkpoint_best.pth", tmp_path / "checkpoint_latest.pth"
    truncated.write_bytes(b"PK\x03\x04 and then the kill")
    job.remove_truncated_checkpoints(tmp_path)
    assert not truncated.exists()
    assert not job.can_continue(tmp_path)
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("data", "x")
    job.remove_truncated_checkpoints(tmp_path)
    assert job.can_continue(tmp_path)


def test_a_summary_cut_short_does_not_count(tmp_path):
    summary = tmp_path / "validation" / "summary.json"
    assert not job.validated(tmp_path)
    files.write_json(summary, {"mean": {"1": 0.5}})
    assert job.validated(tmp_path)
    summary.write_text(summary.read_text()[:9])
    assert not job.validated(tmp_path)


SPLIT = {"train": ["a"], "val": ["b"]}


def ready_to_train(folder: Path, **changes) -> FineTuningJob:
    """A run's job in `folder`; it is fold 5 of nnU-Net's splits_final.json."""
    about = fine_tuning(**SPLIT | changes)
    jobs.write_job(folder, about)
    write_splits(about, [{"train": ["b"], "val": ["a"]}] * 5 + [SPLIT])
    return about


def write_splits(about: FineTuningJob, entries: list[dict]) -> None:
    files.write_json(Path(os.environ[PREPROCESSED], about.dataset, splits.FILE), entries)


def validate(about: FineTuningJob, *cases: str) -> None:
    """What nnU-Net leaves of a training that was validated on `cases`."""
    fold = about.training.folder
    references = [{"reference_file": f"/x/{case}.nii.gz"} for case in cases]
    files.write_json(fold / "validation" / "summary.json", {"metric_per_case": references})
    files.write_json(fold.parent / "dataset.json", {"file_ending": ".nii.gz"})


def test_a_run_trains_with_its_own_cases_or_not_at_all(nnunet_env, tmp_path, monkeypatch):
    """nnU-Net draws some itself where splits_final.json has no such fold."""
    about, trained = ready_to_train(tmp_path / "run"), []

    def train(*_) -> None:
        trained.append(1)
        validate(about, "b")

    monkeypatch.setattr(shell, "execute", train)
    monkeypatch.setattr(job, "rows", lambda *_: [])
    five = [{"train": ["b"], "val": ["a"]}] * 5
    for others in (five, [*five, SPLIT | {"train": ["c"]}], [*five, SPLIT | {"val": ["c"]}]):
        write_splits(about, others)
        reason = job.run_job(tmp_path / "run")["reason"]
        assert "entry 5 of" in reason
        assert "no longer holds the cases of organs__smit__2__0" in reason
    assert not trained
    write_splits(about, [*five, SPLIT])
    assert job.run_job(tmp_path / "run")["state"] == "done"
    (tmp_path / "run" / jobs.ROWS).unlink()
    assert job.run_job(tmp_path / "run")["state"] == "done"
    assert (tmp_path / "run" / jobs.ROWS).is_file(), "measured again"
    assert len(trained) == 1
    earlier = fine_tuning(fold=6)  # of a version that did not note the cases
    jobs.write_job(tmp_path / "earlier", earlier)
    monkeypatch.setattr(shell, "execute", lambda *_: validate(earlier, "x"))
    assert job.run_job(tmp_path / "earlier")["state"] == "done"


def test_a_run_that_was_validated_on_other_cases_is_refused(nnunet_env, tmp_path):
    validate(ready_to_train(tmp_path / "run"), "a")
    reason = job.run_job(tmp_path / "run")["reason"]
    assert "was not validated on this study's cases: 1 of 1 do not belong to it, 1 of" in reason


def test_results_are_the_runs_rows_and_say_what_is_missing(tmp_path):
    small_study = study(tmp_path, seeds=[0, 1])
    first, second, *_ = runs.all_runs(small_study)
    finished(first)
    second.folder.mkdir(parents=True)
    files.write_json(second.folder / jobs.OUTCOME, {"state": "failed", "reason": "no memory"})
    states = collect.collect(small_study)
    assert list(states.values()) == ["done", "failed", "missing", "missing"]
    once = small_study.results.read_bytes()
    rows = files.read_json_lines(small_study.results)
    assert [row["kind"] for row in rows] == ["study", "run", "case", "run", "run", "run"]
    assert rows[0]["description"]["tasks"][0]["dataset"] == "902"
    assert (rows[3]["state"], rows[3]["reason"]) == ("failed", "no memory")
    collect.collect(small_study)
    assert small_study.results.read_bytes() == once

    # a row of `nnssl_study features`, and one that a kill truncated
    with small_study.results.open("a") as file:
        file.write(json.dumps({"kind": "cka", "task": "organs"}) + '\n{"kind": "ru')
    finished(second)
    collect.collect(small_study)
    kinds = [row["kind"] for row in files.read_json_lines(small_study.results)]
    assert kinds == ["study", "run", "case", "run", "case", "run", "run", "cka"]


def test_a_run_without_its_rows_is_to_do(tmp_path):
    """Such as in a copy that is not whole."""
    run, *_ = runs.all_runs(study(tmp_path))
    finished(run)
    assert run.is_done
    (run.folder / jobs.ROWS).unlink()
    assert not run.is_done
    assert collect.outcome_of(run).state == "missing"


def test_a_row_that_is_appended_while_the_results_are_written_stays(tmp_path, monkeypatch):
    """nnssl_study features, while run or report collects."""
    small_study, rest = study(tmp_path), collect._measured_still
    finished(runs.all_runs(small_study)[0])
    collect.collect(small_study)
    row = CkaRow(task="t", first="a", second="b", seed=0, rows=[], columns=[], values=[])
    features = threading.Thread(
        target=lambda: reuse._append(small_study.results, iter([row]), set())
    )

    def measured_still(*given):
        features.start()
        features.join(timeout=0.2)  # it waits
        return rest(*given)

    monkeypatch.setattr(collect, "_measured_still", measured_still)
    collect.collect(small_study)
    features.join()
    kinds = [row["kind"] for row in files.read_json_lines(small_study.results)]
    assert kinds.count("cka") == 1


def test_rows_about_a_training_that_is_gone_are_dropped(tmp_path):
    small_study = study(tmp_path)
    first, second = runs.all_runs(small_study)
    for run in (first, second):
        finished(run)
    ours, theirs = (jobs.training_fingerprint(run.folder) for run in (first, second))
    measured = [
        {"kind": "cka", "task": "old"},  # of an earlier version
        {"kind": "cka", "task": "both", "trainings": [ours, theirs]},
        {"kind": "attention", "task": "second", "trainings": [theirs]},
        {"kind": "attention", "task": "pretrained", "trainings": []},
        {"kind": "attention", "task": "of a", "trainings": ["a"]},
        {"kind": "attention", "task": "of b", "trainings": ["b"]},
    ]
    files.write_json(second.folder / jobs.JOB, {"checkpoint": "b", "tolerance": 2.0})

    def collected() -> list[str]:
        files.write_json_lines(small_study.results, measured)
        collect.collect(small_study)
        rows = files.read_json_lines(small_study.results)
        return [row["task"] for row in rows if row["kind"] in ("cka", "attention")]

    assert collected() == ["old", "both", "second", "pretrained", "of b"]
    rows = files.read_json_lines(first.folder / jobs.ROWS)
    files.write_json_lines(first.folder / jobs.ROWS, [row | {"hd95": 2.0} for row in rows])
    assert collected()[1] == "both"  # with another tolerance
    finished(first, dice=0.3)  # trained again
    assert collected() == ["old", "second", "pretrained", "of b"]


@pytest.mark.parametrize("cut", [0, 1, -3])
def test_rows_of_a_run_that_were_cut_short_are_an_error(tmp_path, cut):
    """Without its last case the run's mean would be another one."""
    small_study = study(tmp_path)
    first = runs.all_runs(small_study)[0]
    finished(first)
    path = first.folder / jobs.ROWS
    path.write_text(path.read_text()[:cut])
    with pytest.raises(StudyError, match=r"rows\.jsonl is damaged.*Remove .*outcome\.json;"):
        collect.collect(small_study)


@pytest.mark.parametrize("content", ["{}", "[]", '{"state": "over"}'])
def test_a_damaged_outcome_is_named(tmp_path, content):
    (tmp_path / jobs.OUTCOME).write_text(content)
    with pytest.raises(StudyError, match=r"outcome\.json is damaged: it must have"):
        jobs.outcome(tmp_path)


def test_results_with_a_row_without_a_kind_name_it(tmp_path):
    small_study = study(tmp_path)
    small_study.runs.mkdir(parents=True)
    small_study.results.write_text('{"kind": "study", "description": {}}\n{"task": "organs"}\n')
    with pytest.raises(StudyError, match=r"row 2 of .*results\.jsonl has no kind"):
        collect.collect(small_study)


def test_what_a_full_disk_cut_off_the_results_comes_back(tmp_path):
    small_study = study(tmp_path)
    finished(runs.all_runs(small_study)[0])
    collect.collect(small_study)
    whole = small_study.results.read_text()
    # the run's row is there, its case's is not
    small_study.results.write_text(whole[: whole.index('"case": ')])
    collect.collect(small_study)
    assert small_study.results.read_text() == whole


def test_a_run_measured_or_trained_again_leaves_nothing_of_before(tmp_path):
    small_study = study(tmp_path)
    first = runs.all_runs(small_study)[0]
    finished(first, dice=0.8)
    epoch = {"kind": "epoch", "run": first.name, "epoch": 7, "dice": 0.5}
    files.write_json_lines(
        first.folder / jobs.ROWS, [*files.read_json_lines(first.folder / jobs.ROWS), epoch]
    )
    collect.collect(small_study)
    finished(first, dice=0.3)
    collect.collect(small_study)
    rows = [
        row for row in files.read_json_lines(small_study.results) if row.get("run") == first.name
    ]
    assert [row.get("dice") for row in rows] == [None, 0.3]


def test_the_results_follow_the_description(tmp_path):
    small_study = study(tmp_path)
    for one in runs.all_runs(small_study):
        finished(one)
    collect.collect(small_study)
    collect.collect(study(tmp_path, arms=ARMS[:1]))
    assert {
        row["arm"] for row in files.read_json_lines(small_study.results) if row["kind"] == "run"
    } == {"scratch"}
    collect.collect(study(tmp_path))
    assert {
        row["arm"] for row in files.read_json_lines(small_study.results) if row["kind"] == "run"
    } == {
        "scratch",
        "smit",
    }


def test_a_tasks_cases_have_their_subject(tmp_path):
    small_study = study(tmp_path, tasks=[TASKS[0] | {"subject": "(patient[0-9]+)_"}])
    first = runs.all_runs(small_study)[0]
    finished(first, case="patient004_frame01")
    collect.collect(small_study)
    (case,) = [row for row in files.read_json_lines(small_study.results) if row["kind"] == "case"]
    assert case["subject"] == "patient004"


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path):
    one = fine_tuning(tolerance=1.0)
    jobs.write_job(tmp_path / "run", one)
    files.write_json(tmp_path / "run" / jobs.OUTCOME, {"state": "done", "reason": None})
    jobs.write_job(tmp_path / "run", one)
    assert jobs.outcome(tmp_path / "run").state == "done"
    jobs.write_job(tmp_path / "run", replace(one, tolerance=2.0))  # is measured again
    assert jobs.outcome(tmp_path / "run").state == "missing"
    with pytest.raises(
        StudyError, match=r"other settings.*another name.*training under small-organs-smit"
    ):
        jobs.write_job(tmp_path / "run", replace(one, fingerprint="b"))


def test_a_finished_start_is_not_made_again_for_another_device(tmp_path):
    start = program(tmp_path / "start", "")
    files.write_json(start / jobs.OUTCOME, {"state": "done", "reason": None})
    made = jobs.read_job(start)
    jobs.write_job(start, replace(made, commands=[["nnssl_pretrain", "-device", "cuda"]]))
    assert jobs.outcome(start).state == "done"
    with pytest.raises(StudyError, match="other settings"):
        jobs.write_job(start, replace(made, fingerprint="b"))


def test_a_start_drops_a_training_checkpoint_that_was_cut_short(tmp_path):
    fold, start = tmp_path / "fold_all", tmp_path / "start"
    fold.mkdir()
    (fold / "checkpoint_latest.pth").write_bytes(b"PK truncated")
    program(start, noting(start))
    jobs.write_job(start, replace(jobs.read_job(start), trains=fold))
    assert job.run_job(start)["state"] == "done"
    assert not (fold / "checkpoint_latest.pth").exists()


def test_what_another_study_trained_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    begun, another = Work(), Work()
    begun.folder, another.folder = tmp_path / "run", tmp_path / "another" / "run"
    begun.begin(fine_tuning())
    model = "SwinSSLTrainer__small-organs-smit__3d_fullres"
    fold = tmp_path / "results" / "Dataset902_Phantoms" / model / "fold_5"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    begun.begin(fine_tuning())
    with pytest.raises(
        StudyError, match=r"fold_5 holds a training that this study did not start.*another name"
    ):
        another.begin(fine_tuning())


def fold_of(about: FineTuningJob) -> Path:
    """nnU-Net's folder of a job's training, with a checkpoint in it."""
    about.training.folder.mkdir(parents=True)
    (about.training.folder / "checkpoint_final.pth").touch()
    return about.training.folder


@pytest.mark.parametrize("trained", [5, 6])
def test_splits_made_anew_give_no_run_the_training_of_another(nnunet_env, tmp_path, trained):
    """The same cases are another entry: nnU-Net's fold 6 is what another run has trained."""
    run = Work()
    run.folder = tmp_path / "organs__smit__2__0"
    run.begin(fine_tuning())
    stored = (run.folder / jobs.JOB).read_bytes()
    run.begin(fine_tuning(elsewhere="", val=[], fold=6))  # collected where it lies, as before
    (run.folder / jobs.JOB).write_bytes(stored)
    files.write_json(run.folder / jobs.OUTCOME, {"state": "done", "reason": None})
    fold_of(fine_tuning(fold=trained))
    with pytest.raises(StudyError, match=r"splits_final\.json was made again") as raised:
        run.begin(fine_tuning(fold=6))
    for part in ("organs__smit__2__0 was begun in", "fold_5,", "fold_6:", "Put the earlier", "rem"):
        assert part in str(raised.value)
    assert (run.folder / jobs.JOB).read_bytes() == stored
    assert run.is_done
    with pytest.raises(StudyError, match="other settings"):  # is said first
        run.begin(fine_tuning(fold=6, fingerprint="b"))


@pytest.mark.parametrize(("trained", "done"), [((5, 6), False), ((), True)])
def test_what_was_trained_elsewhere_does_not_follow_a_moved_entry(
    nnunet_env, tmp_path, trained, done
):
    run, elsewhere = Work(), {"elsewhere": "", "val": ["b"]}
    run.folder = tmp_path / "run"
    run.begin(fine_tuning(**elsewhere))
    for fold in trained:
        fold_of(fine_tuning(fold=fold))
    if done:
        jobs.write_outcome(run.folder, Outcome("done"))
    with pytest.raises(StudyError, match=r"splits_final\.json was made again"):
        run.begin(fine_tuning(fold=6, **elsewhere))


def test_a_start_does_not_take_over_the_training_of_another_study(tmp_path):
    start, fold = Work(), tmp_path / "results" / "Dataset902" / "model" / "fold_all"
    start.folder = tmp_path / "labels"
    made = PretrainingJob(commands=[], makes=tmp_path / "made", trains=fold, fingerprint="a")
    fold.mkdir(parents=True)
    start.begin(made)
    (fold / "checkpoint_latest.pth").touch()
    start.begin(made)  # its own
    moved = tmp_path / "moved" / "Dataset902" / "model" / "fold_all"
    shutil.copytree(fold, moved)
    start.begin(replace(made, trains=moved))
    shutil.rmtree(start.folder)
    with pytest.raises(StudyError, match=r"fold_all holds a training.*; labels would continue it"):
        start.begin(made)


def test_a_tolerance_that_is_edited_while_a_run_trains_counts(nnunet_env, tmp_path, monkeypatch):
    about = ready_to_train(tmp_path / "run", tolerance=1.0)

    def train(*_) -> None:
        validate(about, "b")
        jobs.write_job(tmp_path / "run", replace(about, tolerance=2.0))

    monkeypatch.setattr(shell, "execute", train)
    row = RunRow(run="r", task="t", arm="a", budget=2, seed=0, state="done")
    monkeypatch.setattr(job, "rows", lambda about, _: [replace(row, hours=about.tolerance)])
    assert job.run_job(tmp_path / "run")["state"] == "done"
    assert jobs.read_rows(tmp_path / "run")[0]["hours"] == 2.0


def test_two_calls_may_forget_the_same_failure(tmp_path, monkeypatch):
    jobs.write_outcome(tmp_path, Outcome("failed", "no memory"))
    noted = jobs.outcome(tmp_path)
    monkeypatch.setattr(jobs, "outcome", lambda _: noted)
    jobs.forget_failure(tmp_path)
    jobs.forget_failure(tmp_path)
    assert not (tmp_path / jobs.OUTCOME).exists()


def test_a_recipe_left_empty_is_the_default(tmp_path):
    def run(**recipes) -> runs.StudyRun:
        return runs.all_runs(study(tmp_path, **recipes))[1]

    empty = {"epochs": None, "trainer": None}
    arms = [ARMS[0], ARMS[1] | {"recipe": empty}]
    assert (run(recipe=empty).epochs, run(recipe=empty).trainer) == (1000, "SwinSSLTrainer")
    assert run(recipe={"epochs": 100}, arms=arms).epochs == 100
    assert run(recipe={"epochs": 100}, arms=arms).recipe["epochs"] == 100
    assert run(recipe=empty).recipe == empty, "as earlier versions fingerprint it"


def test_a_run_that_nobody_has_trained_moves_with_its_entry(nnunet_env, tmp_path):
    run = Work()
    run.folder = tmp_path / "run"
    run.begin(fine_tuning())
    run.begin(fine_tuning(fold=6))
    assert jobs.read_job(run.folder) == fine_tuning(fold=6)


def test_a_study_of_another_name_does_not_take_over_a_run(nnunet_env, tmp_path):
    run = Work()
    run.folder = tmp_path / "run"
    run.begin(fine_tuning())
    fold_of(fine_tuning())
    with pytest.raises(
        StudyError, match=r"study or the dataset has another name now.*earlier name back"
    ):
        run.begin(fine_tuning(plans="large-organs-smit"))


def job_with_plans(run: runs.StudyRun, **changes) -> FineTuningJob:
    """By plans in which the 3d_fullres configuration has these changes."""
    plans = nnunet_plans()
    plans["configurations"]["3d_fullres"] |= changes
    return fine_tuning_jobs.job(run, "Dataset902_Phantoms", Split(5, ("a",), ("b",)), plans)


@pytest.mark.parametrize(
    "changes",
    [{"spacing": [3.0, 2.0, 2.0]}, {"patch_size": [16, 32, 32]}, {"batch_size": 4},
     {"normalization_schemes": ["ZScoreNormalization"]}],
)  # fmt: skip
def test_data_preprocessed_anew_are_not_mixed_with_those_of_before(nnunet_env, tmp_path, changes):
    run = runs.all_runs(study(tmp_path))[1]
    before = job_with_plans(run)
    run.begin(before)
    finished(run)
    before = job_with_plans(run, data_identifier="copied")
    run.begin(before)
    assert run.is_done
    with pytest.raises(StudyError, match=r"plans have changed since.*earlier plans.*another name"):
        run.begin(job_with_plans(run, **changes))
    assert jobs.read_job(run.folder) == before
    assert run.is_done


def test_intensities_and_axes_belong_to_the_data(tmp_path):
    run, split = runs.all_runs(study(tmp_path))[1], Split(5, ("a",), ("b",))
    plans = nnunet_plans()
    turned = plans | {"transpose_forward": [2, 0, 1]}
    brighter = plans | {"foreground_intensity_properties_per_channel": {"0": {"mean": 9.0}}}
    known = [fine_tuning_jobs.job(run, "D", split, each).data for each in (plans, turned, brighter)]
    assert len(set(known)) == 3
    assert fine_tuning_jobs.job(run, "D", split, {}).data is None
    elsewhere = {"name": "m", "start": "elsewhere", "trainer": "T", "plans": "P"}
    theirs = runs.all_runs(study(tmp_path, arms=[ARMS[0], elsewhere]))[1]
    assert fine_tuning_jobs.job(theirs, "D", split, {"configurations": {}}).data is None


def test_a_job_of_an_earlier_version_learns_its_data_and_keeps_its_rows(nnunet_env, tmp_path):
    run = runs.all_runs(study(tmp_path))[1]
    now = job_with_plans(run)
    finished(run)
    jobs.write_job(run.folder, replace(now, data=None))
    finished(run)
    run.begin(now)
    assert jobs.read_job(run.folder) == now
    assert run.is_done
    assert (run.folder / jobs.ROWS).is_file()


def test_fingerprints_stay_what_earlier_versions_wrote(tmp_path):
    """Or each study that was begun before would be one of other settings."""
    others = [
        {"name": "resenc", "start": "default", "plans": "P"},
        {"name": "mae", "start": "elsewhere", "trainer": "T", "plans": "Q"},
    ]
    every = runs.all_runs(study(tmp_path, recipe={"epochs": 3}, arms=[*ARMS, *others]))
    split = Split(5, ("a",), ("b",))
    assert [fine_tuning_jobs.job(run, "D", split, plans={}).fingerprint for run in every] == [
        "9da965c7fbdc", "a7b232b3238f", "b3bc2c6c7e10", "952143c7f309"
    ]  # fmt: skip


def states_of(described: Study) -> dict[str, tuple[str, str | None]]:
    """By run, from results.jsonl, which is collected again."""
    collect.collect(described)
    rows = [row for row in files.read_json_lines(described.results) if row["kind"] == "run"]
    return {row["run"]: (row["state"], row["reason"]) for row in rows}


def test_an_edited_description_does_not_report_runs_of_before_as_its_own(
    nnunet_env, tmp_path, monkeypatch
):
    small_study = study(tmp_path, recipe={"epochs": 100})
    scratch, smit = runs.all_runs(small_study)
    for run in (scratch, smit):
        run.begin(job_with_plans(run))
        finished(run)
    path = smit.folder / jobs.JOB  # as an earlier version wrote it
    files.write_json(path, replace(jobs.read_job(smit.folder), described=None).to_json())
    assert "described" not in files.read_json(path)
    assert states_of(small_study) == dict.fromkeys((scratch.name, smit.name), ("done", None))
    edited = study(tmp_path, recipe={"epochs": 300})
    (state, reason), earlier = states_of(edited).values()
    assert (state, earlier) == ("failed", ("done", None))
    assert "other settings than the description says now: recipe" in reason
    assert f"remove runs/{scratch.name} from" in reason
    kinds = [row["kind"] for row in files.read_json_lines(edited.results)]
    assert kinds == ["study", "run", "run", "case"], "the scores of 100 epochs are not those of 300"
    assert reason in orchestrate.summary(edited, collect.collect(edited))
    assert "1 run(s) done" in estimate.cost(runs.all_runs(edited), [scratch], 1)
    monkeypatch.setattr(requirements, "check_inputs", lambda _: None)
    monkeypatch.setattr(estimate, "commands_before", lambda _: [])
    text = estimate.describe_study(edited, 1)
    assert f"1 have other settings than the description says now:\n  {scratch.name}\n" in text
    assert "nothing left to do" not in text
    assert "Cost: nothing left to do" in estimate.describe_study(small_study, 1)
    smit.begin(job_with_plans(smit))
    assert files.read_json(path)["described"]
    assert states_of(small_study)[smit.name] == ("done", None), "its rows are not forgotten"
    assert states_of(edited)[smit.name][0] == "failed"


STARTS = [
    {"name": "scratch", "start": "scratch", "like": "smit"},
    {"name": "smit", "start": "checkpoint", "checkpoint": "smit.pth"},
]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"tasks": [TASKS[0] | {"fold": 3}]}, {"scratch", "smit"}),
        ({"tasks": [TASKS[0] | {"validate": "rest"}]}, {"scratch", "smit"}),
        ({"tasks": [TASKS[0] | {"tolerance": 0.5}]}, {"scratch", "smit"}),
        ({"folds": [0]}, {"scratch", "smit"}),
        ({"arms": [STARTS[0], STARTS[1] | {"checkpoint": "b.pth"}]}, {"scratch", "smit"}),
        ({"arms": [STARTS[0] | {"encoder": "tiny", "like": None}, STARTS[1]]}, {"scratch"}),
        ({"arms": [STARTS[0], STARTS[1] | {"modality": "CT"}]}, set()),
        ({"device": "cuda", "seeds": [0, 1]}, set()),
    ],
)
def test_runs_of_another_start_or_validation_are_not_reported_as_these(
    nnunet_env, tmp_path, change, failed
):
    small_study = study(tmp_path, arms=STARTS)
    for run in runs.all_runs(small_study):
        run.begin(job_with_plans(run))
        finished(run)
    assert {state for state, _ in states_of(small_study).values()} == {"done"}
    edited = study(tmp_path, **{"arms": STARTS} | change)
    states = {name.split("__")[1]: state for name, (state, _) in states_of(edited).items()
              if name.endswith("__0")}  # fmt: skip
    assert {name for name, state in states.items() if state == "failed"} == failed


def test_a_description_in_another_folder_is_the_same(nnunet_env, tmp_path):
    """The path of its checkpoint is another one there."""
    (tmp_path / "b").mkdir()
    here, there = study(tmp_path, arms=STARTS), study(tmp_path / "b", arms=STARTS)
    for one, other in zip(runs.all_runs(here), runs.all_runs(there), strict=True):
        assert one.conditions == other.conditions


def test_another_tolerance_keeps_the_rows_until_there_are_others(nnunet_env, tmp_path):
    one = fine_tuning(tolerance=2.0)
    folder, validation = tmp_path / "run", one.training.folder / "validation"
    jobs.write_job(folder, one)
    (folder / jobs.ROWS).write_text("{}")
    jobs.write_outcome(folder, Outcome("done"))
    validation.mkdir(parents=True)
    (validation / "summary.json").write_text("{}")
    with pytest.raises(StudyError, match=r"2 mm.* 0\.5 mm.*predictions in .* are gone"):
        jobs.write_job(folder, replace(one, tolerance=0.5))
    assert jobs.outcome(folder).state == "done"
    (validation / "a.nii.gz").touch()
    jobs.write_job(folder, replace(one, tolerance=0.5))
    assert jobs.outcome(folder).state == "missing"
    assert (folder / jobs.ROWS).is_file()


def test_results_without_the_folder_of_the_runs_stay(nnunet_env, tmp_path, monkeypatch):
    small_study = study(tmp_path)
    for run in runs.all_runs(small_study):
        finished(run)
    collect.collect(small_study)
    before = small_study.results.read_text(encoding="utf-8")
    shutil.rmtree(small_study.runs)
    monkeypatch.setattr(orchestrate, "prepare_runs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        orchestrate.run(small_study, None, print)
    assert small_study.results.read_text(encoding="utf-8") == before
    assert set(collect.collect(small_study).values()) == {"done"}


PRETRAINING = """{
  "commands": [
    [
      "nnssl_pretrain",
      "-m",
      "smit"
    ]
  ],
  "makes": "/study/starts/smit/weights/checkpoint_final.pth",
  "afresh": false,
  "trains": null,
  "plans": null,
  "fingerprint": "0123456789ab"
}
"""
FINE_TUNING = """{
  "run": "organs__smit__2__0",
  "task": "organs",
  "arm": "smit",
  "budget": 2,
  "cases": 2,
  "seed": 0,
  "dataset": "Dataset902_Phantoms",
  "configuration": "3d_fullres",
  "fold": 5,
  "trainer": "SwinSSLTrainer",
  "plans": "small-organs-smit",
  "device": "cpu",
  "tolerance": 1.0,
  "fingerprint": "a"
}
"""
ELSEWHERE = FINE_TUNING.replace(
    '  "fingerprint"', '  "elsewhere": "",\n  "val": [\n    "b"\n  ],\n  "fingerprint"'
)


@pytest.mark.parametrize("text", [PRETRAINING, FINE_TUNING, ELSEWHERE])
def test_job_files_stay_what_earlier_versions_wrote(tmp_path, text):
    """A study that was begun before continues: the same text in, the same text out."""
    (tmp_path / jobs.JOB).write_text(text)
    files.write_json(tmp_path / jobs.OUTCOME, {"state": "done", "reason": None})
    read = jobs.read_job(tmp_path)
    jobs.write_job(tmp_path, read)  # the same settings: nothing is done again
    assert jobs.outcome(tmp_path).state == "done"
    jobs.write_job(tmp_path / "other", read)
    assert (tmp_path / "other" / jobs.JOB).read_text() == text


def test_a_job_file_that_lacks_something_says_what(tmp_path):
    (tmp_path / jobs.JOB).write_text('{"commands": [], "fingerprint": "a"}')
    assert job.run_job(tmp_path)["state"] == "failed"
    assert "job.json lacks makes; remove" in jobs.outcome(tmp_path).reason


def test_the_cost_is_told_from_runs_alike(tmp_path):
    small_study = study(tmp_path, seeds=[0, 1, 2], recipe={"epochs": 20})
    every = runs.all_runs(small_study)
    assert estimate.cost(every, every, 1).startswith(
        "Cost: 120 epochs in all. The time per epoch is known only"
    )
    finished(every[0], hours=0.5)  # of scratch: 10 epochs, so that 20 take an hour
    finished(every[1], hours=1.0)  # of smit: 20 take two
    text = estimate.cost(every, every[2:], 2)
    assert "80 epochs to do, about 6.0 hours of training, 3.0 with 2 in parallel" in text
    assert "2 run(s) done, which took 1.5 hours" in text


class Queue:
    """What submitit and squeue would say: each job handed in is over the next time that somebody
    looks.
    """

    def __init__(self, fail: int = 0):
        self.fail, self.handed_in = fail, []

    def submit(self, work, folder: Path):
        self.handed_in.append(folder)
        if len(self.handed_in) > self.fail:
            work(folder)
        return type("Job", (), {"job_id": str(len(self.handed_in))})


def test_slurm_hands_in_what_left_the_queue_without_a_result_once_more(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="an extra")
    monkeypatch.setattr(slurm, "in_queue", lambda number: False)
    monkeypatch.setattr(slurm, "SECONDS", 0.01)
    for fail, state in ((1, "done"), (2, "failed")):
        folder = tmp_path / str(fail)
        program(folder, noting(folder))
        queue, said = Queue(fail), []
        monkeypatch.setattr("submitit.AutoExecutor", lambda *_, queue=queue, **__: queue)
        queue.update_parameters = lambda **_: None
        slurm.slurm(tmp_path / "slurm", {})([folder], said.append)
        assert jobs.outcome(folder).state == state
        assert len(queue.handed_in) == 2
        assert "left the queue without a result" in said[1]


@pytest.mark.parametrize("wrong", [{"slurm_part": "gpu"}, {"timeout_min": "1h"}, {"mem_gb": [1]}])
def test_a_parameter_that_submitit_refuses_is_named(tmp_path, monkeypatch, wrong):
    submitit = pytest.importorskip("submitit", reason="an extra")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda _: 2)
    with pytest.raises(StudyError, match=f"slurm: submitit refuses {next(iter(wrong))}: "):
        slurm.slurm(tmp_path / "slurm", {"slurm_partition": "gpu"} | wrong)


def test_slurm_does_not_hand_in_what_still_waits(tmp_path, monkeypatch):
    folder = tmp_path / "one"
    program(folder, noting(folder))
    files.write_json(folder / slurm.NUMBER, {"job": "17"})
    looks = iter([True, True, False])  # it continues in the queue, then ends, with its result

    def in_queue(number: str) -> bool:
        assert number == "17"
        if not (still := next(looks)):
            job.run_job(folder)
        return still

    monkeypatch.setattr(slurm, "in_queue", in_queue)
    queue, said = Queue(), []
    waiting = slurm._Job(queue, folder, said.append)
    assert not waiting.finished(tmp_path)
    assert waiting.finished(tmp_path)
    assert queue.handed_in == []
    assert count_starts(folder) == 1
