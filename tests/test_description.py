"""study.yaml: what it may say, and what the errors say."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from nnssl import cli, parsers
from nnssl.recipe import Recipe
from nnssl.study.design import check, description, template
from nnssl.study.design.description import DescriptionError, load_study
from nnssl.types import FINAL

SMALL = {
    "name": "small",
    "arms": [
        {"name": "scratch", "start": "scratch"},
        {"name": "smit", "start": "checkpoint", "checkpoint": "smit.pth", "recipe": {"lr": 1e-4}},
    ],
    "tasks": [{"name": "organs", "dataset": 501, "recipe": {"epochs": 5}}],
    "budgets": [2, "all"],
    "recipe": {"epochs": 9, "lr": 1e-3},
}

ARM = {"name": "a", "start": "pretrain", "method": "smit", "datasets": [501]}


def written(folder: Path, **changes) -> Path:
    """SMALL as a file; a change of None leaves that key out."""
    content = {key: value for key, value in (SMALL | changes).items() if value is not None}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_what_init_writes_can_be_read_with_all_that_it_comments_out(tmp_path):
    path = tmp_path / "study.yaml"
    template.write_description(path)
    assert load_study(path).folder == tmp_path / "study"
    shown = path.read_text()
    for line in shown.splitlines():
        uncommented = line.lstrip().removeprefix("# ")
        if (line.startswith("  # ") and uncommented[:1] in "-") or (
            line.startswith("  #   ") and ":" in uncommented.split("#")[0]
        ):
            shown = shown.replace(line, line.replace("# ", "", 1))
    path.write_text(shown)
    study = load_study(path)
    assert {arm.start for arm in study.arms} == set(description.STARTS)
    assert [task.name for task in study.tasks] == ["organs", "heart"]
    with pytest.raises(FileExistsError, match="choose another name"):
        template.write_description(path)


@pytest.mark.parametrize("name", ["study.conf", "study", "study.jsonl"])
def test_init_writes_no_file_that_report_would_take_for_results(tmp_path, name):
    with pytest.raises(ValueError, match=rf"ends in .yaml or .yml, .* init \S+{name}.yaml$"):
        template.write_description(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    template.write_description(tmp_path / "study.yml")
    assert load_study(tmp_path / "study.yml").folder == tmp_path / "study"


def test_defaults_paths_and_the_order_of_recipes(tmp_path):
    study = load_study(written(tmp_path))
    scratch, smit = study.arms
    (task,) = study.tasks
    assert (study.folder, study.results) == (
        tmp_path / "study",
        tmp_path / "study" / "results.jsonl",
    )
    assert smit.checkpoint == tmp_path / "smit.pth"
    assert (task.dataset, task.configuration, study.seeds, study.by_fold) == (
        "501",
        "3d_fullres",
        (0,),
        False,
    )
    assert study.recipe_of(task, scratch) == {"epochs": 5, "lr": 1e-3}
    assert study.recipe_of(task, smit) == {"epochs": 5, "lr": 1e-4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown colour; known: name, folder"),
        ({"arms": None}, "has no arms"),
        ({"arms": [SMALL["arms"][1]]}, r"baseline of all comparisons.*smit \(checkpoint\)"),
        ({"arms": [{"name": "scratch", "start": "random"}]}, "one of scratch, checkpoint"),
        ({"arms": [SMALL["arms"][0], {"name": "a", "start": "checkpoint"}]}, "must say checkpoint"),
        (
            {"arms": [SMALL["arms"][0], {"name": "a", "start": "pretrain", "method": "smit"}]},
            "no data to pretrain on",
        ),
        (
            {"arms": [SMALL["arms"][0], {"name": "a", "start": "default", "weights": "x"}]},
            "unknown weights; known: name, start, plans, trainer",
        ),
        (
            {"arms": [SMALL["arms"][0], {"name": "a", "start": "elsewhere", "plans": "x"}]},
            r"arm a \(elsewhere\) must say trainer",
        ),
        (
            {"arms": [SMALL["arms"][0], {"name": "a", "start": "default", "plans": "../x"}]},
            "such as nnUNetResEncUNetLPlans; got '../x'",
        ),
        (
            {"arms": [SMALL["arms"][0] | {"like": "a"}, {"name": "a", "start": "default"}]},
            "a, which has no pretrained encoder",
        ),
        (
            {"arms": [SMALL["arms"][0], SMALL["arms"][1] | {"tasks": ["heart"]}]},
            "unknown tasks: heart",
        ),
        (
            {"arms": [SMALL["arms"][0], SMALL["arms"][1] | {"budgets": [3]}]},
            "does not have: 3; it has 2, all",
        ),
        ({"arms": [SMALL["arms"][0] | {"budgets": ["all"]}]}, "on every task and budget"),
        ({"arms": [SMALL["arms"][0] | {"like": "scratch"}]}, "has no pretrained encoder"),
        (
            {
                "arms": [
                    SMALL["arms"][0],
                    {
                        "name": "a",
                        "start": "pretrain",
                        "method": "smit",
                        "datasets": [1],
                        "after": "a",
                    },
                ]
            },
            r"after a, which is not pretrained itself; allowed: \[\]",
        ),
        ({"arms": [SMALL["arms"][0]] * 2}, "named twice as arm: scratch"),
        ({"arms": [SMALL["arms"][0] | {"name": "a__b"}]}, "single - and _, got 'a__b'"),
        ({"tasks": [{"name": "organs"}]}, "which nnU-Net dataset"),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "subject": "("}]},
            "is not a regular expression",
        ),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "tolerance": 0}]},
            r"tolerance \(mm\) must be a positive number, got 0",
        ),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "tolerance": True}]},
            r"tolerance \(mm\) must be a positive number, got True",
        ),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "tolerance": "wide"}]},
            "positive number, got 'wide'",
        ),
        (
            {
                "tasks": [
                    {"name": "organs", "dataset": 1},
                    {"name": "organs-coarse", "dataset": 1},
                ],
                "arms": [
                    *SMALL["arms"],
                    {"name": "coarse-smit", "start": "checkpoint", "checkpoint": "smit.pth"},
                ],
            },
            "the same plans name twice: organs-coarse-smit; rename",
        ),
        (
            {
                "arms": [
                    *SMALL["arms"],
                    {
                        "name": "organs-smit",
                        "start": "supervised",
                        "dataset": 1,
                        "configuration": "2d",
                    },
                ],
            },
            "supervised pretraining by the arm alone; .* name twice: organs-smit; rename",
        ),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "plans": "../plans"}]},
            "name of plans of the dataset",
        ),
        ({"budgets": [0]}, "at least 1 case, got 0"),
        ({"budgets": ["some"]}, "a number of cases, or all"),
        ({"budgets": [2, 2]}, "named twice as budget: 2"),
        ({"seeds": [0], "folds": [0]}, "seeds or folds, not both"),
        ({"seeds": 3}, "seeds must be a list"),
        ({"folds": 3}, "folds must be a list .* got 3"),
        ({"folds": [1, 1]}, "named twice as fold: 1"),
        (
            {"folds": [0, 1], "tasks": [{"name": "organs", "dataset": 1, "fold": 3}]},
            "folds replace fold: 3 of task organs; leave it out",
        ),
        (
            {"arms": [SMALL["arms"][0] | {"like": "smit", "encoder": "tiny"}, SMALL["arms"][1]]},
            r"arm scratch \(scratch\): like and encoder both say .* leave one of them out",
        ),
        ({"recipe": {"epoch": 3}}, "unknown epoch; known: trainer, decoder"),
        ({"device": "tpu"}, "one of cuda, cpu, mps"),
        (
            {"arms": [SMALL["arms"][0], ARM | {"method": ["a", "b"]}]},
            "arm a: method must be a string, got",
        ),
        (
            {"arms": [SMALL["arms"][0], ARM | {"datasets": ["../../etc"]}]},
            "datasets must be the ID or name of an nnU-Net",
        ),
        (
            {"arms": [SMALL["arms"][0], ARM | {"scans": [3]}]},
            "arm a: scans must be a string, got 3",
        ),
        (
            {"arms": [SMALL["arms"][0], SMALL["arms"][1] | {"tasks": [["organs"]]}]},
            "arm smit: tasks must be a string",
        ),
        ({"arms": [SMALL["arms"][0], ARM | {"name": "a" * 300}]}, "300 characters; .* at most 64"),
        (
            {"tasks": [{"name": "organs", "dataset": "../../etc"}]},
            "501 or Dataset501_Name; got '../../etc'",
        ),
        ({"tasks": [{"name": "organs", "dataset": 1, "subject": [1]}]}, "subject must be a string"),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "configuration": "../3d"}]},
            "name of configuration",
        ),
        ({"recipe": {"trainer": "a/b"}}, "trainer is a class"),
        ({"seeds": [2**40]}, "an integer from 0 to 4294967295"),
        ({"seeds": list(range(30_000))}, "are 120000 runs; allowed are at most 100000"),
    ],
)
def test_errors_say_what_is_wrong_and_what_is_allowed(tmp_path, changes, message):
    with pytest.raises(DescriptionError, match=message) as error:
        load_study(written(tmp_path, **changes))
    assert "study.yaml" in str(error.value)


def test_a_missing_file_and_a_broken_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nnssl_study init"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(DescriptionError, match="not YAML"):
        load_study(tmp_path / "broken.yaml")


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "values after expanding aliases"),
        ("a: &a [*a]", "an alias that refers to itself"),
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is there twice"),
        ("a:\n- {b: 1, b: 2}\n", "line 2: 'b' is there twice"),
        ("a: 1\ndataset: 010\n", "line 2: YAML does not read 010 as it is written"),
        ("seeds: [0, 1:30]\n", "line 1: YAML does not read 1:30"),
        ("tasks:\n- {tolerance: 1:30.5}\n", "line 2: YAML does not read 1:30.5"),
        ("name: a\nfolder: 2026-13-01\n", "study.yaml, line 2: YAML does not read 2026-13-01"),
        ("name: 2026-07-01\n", "line 1: YAML does not read 2026-07-01 .* put it in quotes"),
        ("name: !!int three\n", "study.yaml has a value that YAML cannot read"),
        ("[" * 5000, "an alias that refers to itself, or thousands of nested lists"),
        ("# " + "x" * 2_000_000, "bytes; allowed are at most"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_exhausts_the_memory_or_runs_something_is_not_read(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(DescriptionError, match=message):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("arm", "recipe", "message"),
    [
        ({"method": "smitt"}, {}, "arm a: method: unknown 'smitt'; known: smit"),
        ({"encoder": "huge"}, {}, "arm a: unknown preset 'huge'"),
        ({"options": {"dimz": 2}}, {}, "arm a: unrecognized arguments: --dimz 2"),
        ({"options": {"dims": "two"}}, {}, r"arm a: argument --dims: invalid int value: 'two'"),
        (
            {"options": {"set": ["lr=fast"]}},
            {},
            "arm a: cannot set 'lr=fast': 'fast' is not a number",
        ),
        ({"options": {"set": ["teacher=1"]}}, {}, "arm a: cannot set 'teacher=1'"),
        (
            {"options": {"only_prepare": True}},
            {},
            "arm a: options: --only-prepare is set by the study itself",
        ),
        ({"options": {"help": True}}, {}, "--help is set by the study itself"),
        ({}, {"schedule": "cosin"}, "on task organs: schedule must be poly or cosine, got 'cosin'"),
        ({}, {"epochs": -3}, "epochs must be at least 1, got -3"),
        ({}, {"lr": "fast"}, "argument --lr: invalid float value: 'fast'"),
        ({}, {"decoder": "heavy"}, "unknown decoder 'heavy'; known: "),
        ({}, {"epochs": 2.5}, "argument --epochs: invalid int value"),
        ({}, {"patch": [96]}, "patch must be three numbers"),
        ({}, {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_a_command_would_refuse_is_refused_before_anything_runs(
    tmp_path, capsys, monkeypatch, arm, recipe, message
):
    arms = [SMALL["arms"][0], ARM | arm]
    path = written(
        tmp_path, arms=arms, recipe=recipe or None, tasks=[{"name": "organs", "dataset": 501}]
    )
    monkeypatch.setattr(sys, "argv", ["nnssl_study", "run", str(path), "--dry-run"])
    assert cli.study() == 1
    assert re.search(message, capsys.readouterr().err)


CHECKPOINT = {"name": "a", "start": "checkpoint"}
PRIMUS = {"name": "a", "start": "default", "trainer": "DefaultPrimusMTrainer"}


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (PRIMUS | {"trainer": "SwinSSLTrainer"}, "arm a: trainer SwinSSLTrainer ignores"),
        (PRIMUS | {"trainer": "SwinFrozenTrainer"}, "arm a: trainer SwinFrozenTrainer ignores"),
        (PRIMUS | {"trainer": "nnUNetTrainer"}, "subclasses: DefaultPrimusSTrainer, .*elsewhere"),
        (PRIMUS | {"trainer": "NobodysTrainer"}, "finds no trainer NobodysTrainer; known: "),
        (PRIMUS, "DefaultPrimusMTrainer has a 3D network, but task flat is 2d"),
        (ARM | {"recipe": {"trainer": "SwinLoraTrainer"}}, "no trainer SwinLoraTrainer; .*LoRAT"),
    ],
)
def test_a_trainer_that_is_not_there_or_of_another_length_is_refused(tmp_path, arm, message):
    tasks = [*SMALL["tasks"], {"name": "flat", "dataset": 501, "configuration": "2d"}]
    path = written(tmp_path, arms=[SMALL["arms"][0], arm], tasks=tasks)
    with pytest.raises(DescriptionError, match=message):
        check.check_settings(load_study(path))


@pytest.mark.parametrize(
    "trainer",
    [
        "SwinScratchTrainer",
        "SwinTrainer",
        "DefaultNetworkTrainer",
        "DefaultPrimusMTrainer",
        "nnUNetTrainer",
    ],
)
@pytest.mark.parametrize("of", ["study", "arm"])
def test_a_pretrained_arm_has_a_trainer_that_loads_its_weights(tmp_path, trainer, of):
    recipe = {"trainer": trainer}
    arm = ARM | ({"recipe": recipe} if of == "arm" else {})
    path = written(tmp_path, arms=[SMALL["arms"][0], arm], recipe=recipe if of == "study" else None)
    allowed = "SwinFrozenTrainer, SwinGradualTrainer, SwinLoRATrainer, SwinSSLTrainer and"
    message = f"arm a: trainer {trainer} does not load pretrained weights; .* {allowed}"
    with pytest.raises(DescriptionError, match=message):
        check.check_settings(load_study(path))


def test_other_networks_pass(tmp_path):
    arms = [
        SMALL["arms"][0],
        PRIMUS | {"tasks": ["organs"]},
        {"name": "b", "start": "default", "plans": "nnUNetResEncUNetLPlans"},
        {"name": "c", "start": "elsewhere", "trainer": "PretrainedTrainer", "plans": "ptPlans__x"},
    ]
    tasks = [*SMALL["tasks"], {"name": "flat", "dataset": 501, "configuration": "2d"}]
    check.check_settings(load_study(written(tmp_path, arms=arms, tasks=tasks)))


def test_what_the_commands_take_passes(tmp_path):
    """Numbers that YAML reads as words, flags of each kind, settings of the method."""
    options = {
        "dims": 2,
        "epochs": 5,
        "crop": [32, 32],
        "fp32": True,
        "np": 3,
        "compile": False,
        "hu": [-1000, 1000],
        "set": ["lr=1e-4", "mask_ratio=0.6"],
    }
    recipe = {
        "lr": "1e-3",
        "epochs": 3,
        "patch": [16, 16, 16],
        "mirror": False,
        "trainer": "SwinFrozenTrainer",
    }
    arms = [SMALL["arms"][0], ARM | {"options": options, "recipe": {"decoder": "light"}}]
    tasks = [{"name": "flat", "dataset": 501, "configuration": "2d"}]
    check.check_settings(load_study(written(tmp_path, arms=arms, recipe=recipe, tasks=tasks)))


@pytest.mark.parametrize(
    ("arm", "configuration", "said"),
    [
        (ARM, "2d", "its encoder is 3D, but task a is 2d"),
        (ARM | {"options": {"dims": 2}}, "3d_fullres", "its encoder is 2D, but task a is 3d_fullr"),
        (ARM | {"options": {"crop": [32, 32]}}, "2d", None),
        (CHECKPOINT | {"checkpoint": "smit_tiny"}, "2d", "its encoder is 3D, but task a is 2d"),
        (CHECKPOINT | {"checkpoint": "natural_tiny"}, "2d", None),
        (CHECKPOINT | {"checkpoint": "not_there.pth"}, "2d", None),
        (ARM, "own_configuration", None),
    ],
)
def test_an_encoder_of_other_dimensions_is_refused_before_it_is_pretrained(
    tmp_path, arm, configuration, said
):
    tasks = [{"name": "a", "dataset": 501, "configuration": configuration}]
    study = load_study(written(tmp_path, arms=[SMALL["arms"][0], arm], tasks=tasks))
    if said is None:
        check.check_settings(study)
        return
    with pytest.raises(DescriptionError, match=f"arm a: {said}"):
        check.check_settings(study)


def test_a_folder_of_a_pretraining_is_its_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    path = written(tmp_path, arms=[SMALL["arms"][0], CHECKPOINT | {"checkpoint": "run"}])
    with pytest.raises(DescriptionError, match="run is a folder without checkpoint_final"):
        load_study(path)
    (tmp_path / "run" / FINAL).touch()
    assert load_study(path).arms[1].checkpoint == tmp_path / "run" / FINAL


def test_a_key_that_yaml_reads_as_no_word_is_refused(tmp_path):
    """`no: hu` is {False: "hu"}."""
    arms = [SMALL["arms"][0], ARM | {"options": {False: "hu"}}]
    with pytest.raises(DescriptionError, match="arm a: unrecognized arguments: --False hu"):
        check.check_settings(load_study(written(tmp_path, arms=arms)))


def test_every_word_of_a_recipe_is_a_flag_and_every_number_of_the_trainers_can_be_said():
    flags = vars(parsers.plan_parser().parse_args(["-d", "1"]))
    assert set(description.RECIPE) <= {*flags, "trainer"}
    assert {field.name for field in fields(Recipe)} - {"clip"} <= set(description.RECIPE)
