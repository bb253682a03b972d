"""nnssl_doctor: silent on what is right; each thing that is broken on purpose is named, with the
line that fixes it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic_checkpoints import pretrained
from synthetic_plans import DATASET, nnunet_plans

from nnssl import cli, files, finetune, trainer_path, weights
from nnssl.doctor import discovery, finding, machine, packages
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO
from nnssl.plans.derive import PREPROCESSED
from nnssl.recipe import RECIPE

pytestmark = pytest.mark.usefixtures("one_thread")
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def sound(nnunet_env, monkeypatch, tmp_path) -> dict[str, Path]:
    """Nothing is wrong: folders, trainers, the only checkpoint under the results, and plans that
    name another.
    """
    # containers differ, and it is not what is broken here
    monkeypatch.setattr(machine, "LEAST_SHARED", 0)
    # as a shell with the variable has it
    monkeypatch.setattr(trainer_path, "BEFORE", trainer_path.trainers_folder())
    named = pretrained(tmp_path / "named")
    plans = nnunet_plans() | {INFO: {"checkpoint_path": str(named)}}
    finetune.resolve_architecture(plans, "3d_fullres")
    path = nnunet_env[PREPROCESSED] / DATASET / "smitA.json"
    files.write_json(path, plans)
    only = pretrained(
        nnunet_env[checkpoint_choice.RESULTS] / "nnssl" / "ct" / "smit__micro", seed=2
    )
    return {"named": named, "plans": path, "only": only, "tmp": tmp_path, **nnunet_env}


def diagnosis(monkeypatch, capsys) -> tuple[int, str]:
    """Exit status, and what the command printed."""
    monkeypatch.setattr(sys, "argv", ["nnssl_doctor"])
    code = cli.doctor()
    return code, capsys.readouterr().out


def test_nothing_is_wrong_and_it_says_what_a_training_would_start_from(sound, monkeypatch, capsys):
    code, said = diagnosis(monkeypatch, capsys)
    assert (code, "wrong " in said) == (0, False), said
    assert said.strip().endswith("Nothing is wrong.")
    assert f"torch {torch.__version__.split('+')[0]}" in said
    assert (
        "SwinSSLTrainer, SwinScratchTrainer, SwinFrozenTrainer, SwinGradualTrainer, "
        "SwinLoRATrainer in" in said
    )
    assert ", by the " in said
    assert said.count(f"{trainer_path.trainers_folder()},") == 1  # not once per trainer
    for path in (sound["named"], sound["only"]):
        assert (
            f"{path} (smit, 3D, 1 channel(s), embed_dim 6, sha256 {files.sha256(path)[:12]})"
            in said
        )
    assert f"{DATASET} -p smitA" in said
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert f"{variable}: {sound[variable]}" in said


def unset_folder(sound, patch):
    patch.delenv("nnUNet_raw")


def missing_folder(sound, patch):
    patch.setenv(PREPROCESSED, str(sound["tmp"] / "nowhere"))


def file_for_a_folder(sound, patch):
    patch.setenv(PREPROCESSED, str(sound["plans"]))


def unwritable_folder(sound, patch):
    """Root may write anywhere but in /proc."""
    folder = sound["tmp"] / "locked"
    folder.mkdir(mode=0o555)
    patch.setenv(PREPROCESSED, str(folder) if os.geteuid() else "/proc")


def variable_names_the_repository(sound, patch):
    patch.setenv(trainer_path.VARIABLE, str(REPOSITORY))


def variable_names_nothing(sound, patch):
    patch.setenv(
        trainer_path.VARIABLE,
        os.pathsep.join([str(sound["tmp"] / "gone"), trainer_path.trainers_folder()]),
    )


def variable_is_unset(sound, patch):
    patch.delenv(trainer_path.VARIABLE)


def only_this_package_names_the_trainers(sound, patch):
    """An editable install, or one into a folder of PYTHONPATH: importing nnssl is what set the
    variable.
    """
    patch.setattr(trainer_path, "BEFORE", None)


def installed(sound, patch, name, found):
    """pip lists another version than the files are of."""
    info = sound["tmp"] / "site" / f"{name}-{found}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {found}\n")
    patch.syspath_prepend(str(info.parent))


def old_torch(sound, patch):
    installed(sound, patch, "torch", "2.2.2")


def slow_torch(sound, patch):
    installed(sound, patch, "torch", "2.9.1+cu128")


def trainers_of_the_user_are_broken(sound, patch):
    (sound["tmp"] / "broken").mkdir()
    (sound["tmp"] / "broken" / "users_trainer.py").write_text("import no_such_module_anywhere\n")
    patch.setenv(
        trainer_path.VARIABLE,
        os.pathsep.join([str(sound["tmp"] / "broken"), trainer_path.trainers_folder()]),
    )


def old_nnunet(sound, patch):
    installed(sound, patch, "nnunetv2", "2.5.1")


def torchvision_of_another_torch(sound, patch):
    package = sound["tmp"] / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    patch.delitem(sys.modules, "torchvision", raising=False)
    patch.syspath_prepend(str(package.parent))


def no_blosc2(sound, patch):
    patch.setitem(sys.modules, "blosc2", None)


def several_checkpoints(sound, patch):
    sound["plans"].unlink()
    pretrained(sound[checkpoint_choice.RESULTS] / "nnssl" / "ct" / "dino__micro")


def variable_names_a_missing_checkpoint(sound, patch):
    sound["plans"].unlink()
    patch.setenv(checkpoint_choice.VARIABLE, "/gone.pth")


def truncated_checkpoint(sound, patch):
    content = sound["only"].read_bytes()
    sound["only"].write_bytes(content[: len(content) // 2])
    sound["plans"].unlink()


def planned_checkpoint_is_gone(sound, patch):
    sound["named"].unlink()


def planned_checkpoint_has_changed(sound, patch):
    pretrained(sound["named"].parent, seed=1)


def planned_checkpoint_is_truncated(sound, patch):
    sound["named"].write_bytes(sound["named"].read_bytes()[:1000])


def recipe_of_another_version(sound, patch):
    plans = files.read_json(sound["plans"])
    files.write_json(sound["plans"], plans | {RECIPE: {"epoch": 3}})


def plans_cut_short(sound, patch):
    sound["plans"].write_text(sound["plans"].read_text()[:100])


def plans_in_a_folder_with_a_space_cut_short(sound, patch):
    folder = sound[PREPROCESSED] / "Dataset502_two words"
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text("{")


def plans_that_may_not_be_read(sound, patch):
    """Root may read anything, so the error is made."""
    read_json = files.read_json

    def refuse(path):
        if path == sound["plans"]:
            raise PermissionError(13, "Permission denied", str(path))
        return read_json(path)

    patch.setattr(files, "read_json", refuse)


def missing_folder_with_a_space(sound, patch):
    patch.setenv(PREPROCESSED, str(sound["tmp"] / "two words"))


def folder_below_a_private_one(sound, patch):
    """Root may look anywhere, so the error is made."""
    private, stat = sound["tmp"] / "private", os.stat

    def refuse(path, *args, **options):
        if str(path).startswith(str(private)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    patch.setattr(os, "stat", refuse)
    patch.setattr(os, "access", lambda path, _: not str(path).startswith(str(private)))
    patch.setenv(PREPROCESSED, str(private / PREPROCESSED))


def planned_info_is_no_mapping(sound, patch):
    files.write_json(sound["plans"], files.read_json(sound["plans"]) | {INFO: None})


def little_shared_memory(sound, patch):
    if not machine.SHARED.is_dir():
        patch.setattr(machine, "SHARED", sound["tmp"])
    patch.setattr(machine, "LEAST_SHARED", 2**60)


NEW_PLANS = f"nnssl_plan -d {DATASET} -c CHECKPOINT --name smitA"
BREAKAGES = {
    unset_folder: ("nnUNet_raw is not set", "export nnUNet_raw="),
    missing_folder: ("nnUNet_preprocessed: folder ", "mkdir -p "),
    file_for_a_folder: ("smitA.json is not a folder", "export nnUNet_preprocessed="),
    unwritable_folder: ("is not writable", "chmod u+w "),
    variable_names_the_repository: ("which holds setup.py", "export nnUNet_extTrainer="),
    variable_names_nothing: (
        "which is not a folder: nnU-Net skips it silently",
        "export nnUNet_extTrainer=",
    ),
    variable_is_unset: (
        "does not find -tr SwinSSLTrainer; nnUNet_extTrainer is not set",
        "export nnUNet_extTrainer=",
    ),
    only_this_package_names_the_trainers: (
        "but only in processes that import nnssl",
        "export nnUNet_extTrainer=",
    ),
    old_torch: ("torch 2.2.2 is too old", 'pip install -U "torch>=2.6.0"'),
    slow_torch: ("its 3D convolutions are several times slower", 'pip install -U "torch!=2.9.*"'),
    trainers_of_the_user_are_broken: (
        "No module named 'no_such_module_anywhere'",
        "export nnUNet_extTrainer=",
    ),
    old_nnunet: ("nnunetv2 2.5.1 is too old", 'pip install -U "nnunetv2>=2.8.0"'),
    torchvision_of_another_torch: (
        "operator torchvision::nms does not exist",
        "pip install torch torchvision",
    ),
    no_blosc2: ("blosc2", "pip install blosc2"),
    several_checkpoints: ("2 pretrained checkpoints were found", "export nnssl_checkpoint="),
    variable_names_a_missing_checkpoint: ("no file at /gone.pth", "export nnssl_checkpoint="),
    truncated_checkpoint: ("it is truncated", "export nnssl_checkpoint="),
    planned_checkpoint_is_gone: (
        f"named by {DATASET}/smitA.json",
        NEW_PLANS,
    ),
    planned_checkpoint_has_changed: ("has changed since", NEW_PLANS),
    planned_checkpoint_is_truncated: ("-p smitA: ", NEW_PLANS),
    recipe_of_another_version: ("unknown key(s)", NEW_PLANS),
    plans_cut_short: ("smitA.json cannot be read", "rm "),
    plans_in_a_folder_with_a_space_cut_short: (
        "two words/nnUNetPlans.json cannot be read",
        "two words/nnUNetPlans.json'",
    ),
    plans_that_may_not_be_read: ("smitA.json cannot be read: [Errno 13]", "chmod u+r "),
    folder_below_a_private_one: (
        "nnUNet_preprocessed is below a folder that you may not enter",
        "export nnUNet_preprocessed=",
    ),
    planned_info_is_no_mapping: ("pretrain_info is not a mapping", NEW_PLANS),
    missing_folder_with_a_space: ("nnUNet_preprocessed: folder ", "two words'"),
    little_shared_memory: ("of shared memory: too small", "docker run --shm-size=8g"),
}


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_what_is_broken_is_named_alone_with_the_line_that_mends_it(
    sound, monkeypatch, capsys, breakage
):
    """U9: old versions of torch, and 2.9 with its slow convolutions."""
    breakage(sound, monkeypatch)
    code, said = diagnosis(monkeypatch, capsys)
    message, remedy = BREAKAGES[breakage]
    assert code == 1
    assert said.strip().endswith("1 problem found; the command after > fixes it."), said
    after = said.split("\n  wrong ")[1]
    assert message in after
    (typed,) = [
        line for line in after.split("\n  ok ")[0].splitlines() if line.startswith("        > ")
    ][:1]
    assert remedy in typed


def test_mic_dkfzs_package_is_named_by_the_import_itself(tmp_path):
    """Its files may lie in the place of ours: nothing of ours is run then."""
    info = tmp_path / "nnssl-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nnssl\nVersion: 1.2\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-m", "nnssl", "doctor"],
        capture_output=True,
        encoding="utf-8",
        env=environment,
    )
    assert done.returncode == 1
    assert "nnssl 1.2 (MIC-DKFZ's). They cannot share an environment" in done.stderr
    assert "pip uninstall nnssl" in done.stderr


def test_what_a_few_shot_user_meets_first_is_a_note_with_the_line_to_type(
    sound, monkeypatch, capsys
):
    files.write_json(sound["plans"].parent / "dataset.json", {"numTraining": 3})
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 0
    assert f"note  {DATASET} -p smitA: 3 labelled case(s): nnU-Net's 5 folds need 5 of them" in said
    assert f"> nnUNetv2_train {DATASET} 3d_fullres all -tr SwinSSLTrainer -p " in said


def test_no_process_for_augmentation_is_noted_since_nnunets_planner_fails(
    sound, monkeypatch, capsys
):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 0
    assert "nnU-Net 0 processes for augmentation: its planning fails with 0" in said
    assert "> export nnUNet_n_proc_DA=1" in said


def test_more_writing_processes_than_processors_are_noted(sound, monkeypatch, capsys):
    monkeypatch.setattr("nnssl.limits.cores", lambda: 2)
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 8)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 0
    assert "note  nnU-Net starts 8 processes to write predictions, 2 are usable" in said
    assert "> export nnUNet_def_n_proc=2" in said


def test_without_a_checkpoint_of_ones_own_there_are_the_released_ones(sound, monkeypatch, capsys):
    sound["plans"].unlink()
    sound["only"].unlink()
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 0
    assert "ok    plans that name no checkpoint: " in said
    assert "natural_parcels_tiny" in said
    assert "; where no channel is CT natural_tiny_3d; in 2d natural_tiny, default:" in said
    shutil.copytree(weights.FOLDER, sound["tmp"] / "weights")
    monkeypatch.setattr(weights, "FOLDER", sound["tmp"] / "weights")
    weights.default(2).file.write_bytes(b"")
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 1
    assert "natural_tiny are damaged or changed" in said


@pytest.mark.parametrize(
    "content", [[{"train": ["a"], "val": ["b"]}], {"configurations": ["2d"]}, {"spacing": 1}, None]
)
def test_other_json_of_a_dataset_is_passed_over(sound, monkeypatch, capsys, content):
    """Such as splits that somebody has put aside: no plans, and no fault."""
    files.write_json(sound["plans"].parent / "splits_final_backup.json", content)
    code, said = diagnosis(monkeypatch, capsys)
    assert (code, "backup" in said) == (0, False), said


def test_plans_with_an_empty_architecture_are_passed_over(sound, monkeypatch, capsys):
    plans = nnunet_plans()
    plans["configurations"]["3d_fullres"]["architecture"] = None
    files.write_json(sound["plans"].parent / "others.json", plans)
    code, said = diagnosis(monkeypatch, capsys)
    assert (code, "others" in said) == (0, False), said


def test_several_checkpoints_are_no_fault_where_the_plans_name_theirs(sound, monkeypatch, capsys):
    pretrained(sound[checkpoint_choice.RESULTS] / "nnssl" / "ct" / "dino__micro")
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 0
    assert "note  plans that name no checkpoint: 2 pretrained checkpoints were found" in said


def test_another_copy_that_nnunet_finds_is_no_fault(sound, monkeypatch, capsys):
    other = sound["tmp"] / "site-packages" / "nnssl" / "trainers"
    other.mkdir(parents=True)
    (other / "nnssl_swin_ssl.py").touch()
    monkeypatch.setattr(trainer_path, "BEFORE", str(other))
    code, said = diagnosis(monkeypatch, capsys)
    assert code == 0
    assert f"nnU-Net's commands use the trainers of another copy: {other}" in said


def test_the_line_that_names_our_trainers_keeps_the_users(sound, monkeypatch):
    """Of their folders those that nnU-Net can use."""
    own, copy, gone = (sound["tmp"] / name for name in ("theirs", "copy", "gone"))
    for folder in (own, copy):
        folder.mkdir()
    (copy / "nnssl_swin_ssl.py").touch()
    named = os.pathsep.join(map(str, [own, copy, gone, REPOSITORY]))
    monkeypatch.setenv(trainer_path.VARIABLE, named)
    wanted = os.pathsep.join([str(own), trainer_path.trainers_folder()])
    findings = discovery.trainers()
    assert len(findings) == 2
    assert {one.remedy for one in findings} == {f"export nnUNet_extTrainer={wanted}"}


def test_all_that_is_installed_along_is_looked_at():
    """A package that another one brings along may be missing all the same."""
    (needed,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg == "install_requires"
    )
    names = {re.match(r"[\w-]+", one)[0] for one in needed}
    assert {*packages.PLAIN.values(), "torch", "nnunetv2"} == names


def test_what_is_wrong_needs_a_remedy():
    with pytest.raises(ValueError, match="needs the command that fixes it"):
        finding.wrong("broken", "")
