"""study.yaml: what it may say, and what the errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nnssl.study import description, template
from nnssl.study.description import DescriptionError, load

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


def written(folder: Path, **changes) -> Path:
    """SMALL as a file; a change of None leaves that key out."""
    content = {key: value for key, value in (SMALL | changes).items() if value is not None}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_what_init_writes_can_be_read_with_all_that_it_comments_out(tmp_path):
    path = tmp_path / "study.yaml"
    template.write(path)
    assert load(path).folder == tmp_path / "study"
    shown = path.read_text()
    for line in shown.splitlines():
        bare = line.lstrip().removeprefix("# ")
        if (line.startswith("  # ") and bare[:1] in "-") or (line.startswith("  #   ") and ":" in bare.split("#")[0]):
            shown = shown.replace(line, line.replace("# ", "", 1))
    path.write_text(shown)
    study = load(path)
    assert {arm.start for arm in study.arms} == set(description.STARTS)
    assert [task.name for task in study.tasks] == ["organs", "heart"]
    with pytest.raises(FileExistsError, match="choose another name"):
        template.write(path)


def test_defaults_paths_and_the_order_of_recipes(tmp_path):
    study = load(written(tmp_path))
    scratch, smit = study.arms
    (task,) = study.tasks
    assert (study.folder, study.results) == (tmp_path / "study", tmp_path / "study" / "results.jsonl")
    assert smit.checkpoint == tmp_path / "smit.pth"
    assert (task.dataset, task.configuration, study.seeds, study.by_fold) == ("501", "3d_fullres", (0,), False)
    assert study.recipe_of(task, scratch) == {"epochs": 5, "lr": 1e-3}
    assert study.recipe_of(task, smit) == {"epochs": 5, "lr": 1e-4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown colour; known: name, folder"),
        ({"arms": None}, "names no arms"),
        ({"arms": [SMALL["arms"][1]]}, r"baseline of all comparisons.*smit \(checkpoint\)"),
        ({"arms": [{"name": "scratch", "start": "random"}]}, "one of scratch, checkpoint"),
        ({"arms": [SMALL["arms"][0], {"name": "a", "start": "checkpoint"}]}, "must say checkpoint"),
        ({"arms": [SMALL["arms"][0], {"name": "a", "start": "pretrain", "method": "smit"}]}, "on what to pretrain"),
        ({"arms": [SMALL["arms"][0], {"name": "a", "start": "default", "weights": "x"}]}, "unknown weights"),
        ({"arms": [SMALL["arms"][0], SMALL["arms"][1] | {"tasks": ["heart"]}]}, "not there: heart"),
        ({"arms": [SMALL["arms"][0], SMALL["arms"][1] | {"budgets": [3]}]}, "does not have: 3; it has 2, all"),
        ({"arms": [SMALL["arms"][0] | {"budgets": ["all"]}]}, "on every task and budget"),
        ({"arms": [SMALL["arms"][0] | {"like": "scratch"}]}, "has no pretrained encoder"),
        (
            {
                "arms": [
                    SMALL["arms"][0],
                    {"name": "a", "start": "pretrain", "method": "smit", "datasets": [1], "after": "a"},
                ]
            },
            r"after a, which has no encoder before it; with one: \[\]",
        ),
        ({"arms": [SMALL["arms"][0]] * 2}, "named twice as arm: scratch"),
        ({"arms": [SMALL["arms"][0] | {"name": "a__b"}]}, "single - and _, got 'a__b'"),
        ({"tasks": [{"name": "organs"}]}, "which nnU-Net dataset"),
        ({"tasks": [{"name": "organs", "dataset": 1, "subject": "("}]}, "no regular expression"),
        (
            {"tasks": [{"name": "organs", "dataset": 1, "tolerance": 0}]},
            r"tolerance \(mm\) is a positive number, got 0",
        ),
        ({"tasks": [{"name": "organs", "dataset": 1, "tolerance": "wide"}]}, "positive number, got 'wide'"),
        (
            {
                "tasks": [{"name": "organs", "dataset": 1}, {"name": "organs-coarse", "dataset": 1}],
                "arms": [*SMALL["arms"], {"name": "coarse-smit", "start": "checkpoint", "checkpoint": "smit.pth"}],
            },
            "the same plans twice: organs-coarse-smit; rename",
        ),
        ({"tasks": [{"name": "organs", "dataset": 1, "plans": "../plans"}]}, "name of plans of the dataset"),
        ({"budgets": [0]}, "0 cases trains nothing"),
        ({"budgets": ["some"]}, "a number of cases, or all"),
        ({"budgets": [2, 2]}, "named twice as budget: 2"),
        ({"seeds": [0], "folds": [0]}, "seeds or folds, not both"),
        ({"seeds": 3}, "must be a list"),
        ({"recipe": {"epoch": 3}}, "unknown epoch; known: trainer, decoder"),
        ({"device": "tpu"}, "one of cuda, cpu, mps"),
    ],
)
def test_errors_say_what_is_wrong_and_what_is_allowed(tmp_path, changes, message):
    with pytest.raises(DescriptionError, match=message) as error:
        load(written(tmp_path, **changes))
    assert "study.yaml" in str(error.value)


def test_a_missing_file_and_a_broken_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nnssl_study init"):
        load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(DescriptionError, match="not YAML"):
        load(tmp_path / "broken.yaml")
