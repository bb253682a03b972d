"""What every command takes, against a golden file: names, defaults, help, accepted words, and what
Python is given for them.

After a change that is meant to change a command: `python tests/test_flags.py` from the repository's
root, and say it in the changelog.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from nnssl import cli, limits
from nnssl.__main__ import COMMANDS

GOLDEN = Path(__file__).with_name("golden") / "flags"
# what each option is tried with: the value that it becomes, or what is said of it
WORDS = ("3", "-1", "0.5", "1e-3", "all", "auto", "a/b.pth", "hf://owner/repo/file")
# function that does the work, and command lines: the shortest, and one that gives every option
LINES = {
    "pretrain": (
        "nnssl.train.pretrain.pretrain",
        [
            "-m smit -i scans",
            "-m simmim -d 501 Dataset502_B --channels 2 0 2 --name made --spacing 3 2 1.5 "
            "--hu -500 500 --no-hu -np 3 --update --check -part_id 1 -num_parts 2 --only-prepare "
            "--pattern */ct.nii.gz b -a tiny --from hf://owner/repo/file --epochs 6 "
            "--batch-size 4 --accumulate 2 --crop 32 48 --dims 2 --set lr=1e-4 beta2=0.9 --seed 7 "
            "--c -o folder -device cpu --workers 2 --cache off --fp32 --compile --graph "
            "--checkpointing "
            "--log-every 3 --save-every 9 --probe 503 --probe-cases 8 --probe-every 11 "
            "--tensorboard --wandb",
            "-m smit -i a b --channels all --steps 5",
        ],
    ),
    "plan": (
        "nnssl.plans.derive.derive",
        [
            "-d 501",
            "-d Dataset501_A -c a.pth -a tiny -gpu_memory_target 11.5 --spacing pretraining "
            "-p nnUNetPlans --name new --decoder light --patch 32 48 --batch-size 3 --epochs 4 "
            "--iterations 50 --val-iterations 6 --foreground 0.5 --no-mirror --lr 1e-4 "
            "--head-lr 20 --encoder-lr 0.2 --layer-decay 0.8 --warmup-iterations 9 "
            "--warmup-epochs 1.5 --drop-path 0.2 --ema 0.9 --unfreeze-every 2.5 --lora-rank 4 "
            "--lora-alpha 6 --weight-decay 0.1 --schedule cosine",
            "-d 1 --spacing 3 1 0.5",
        ],
    ),
    "convert": (
        "nnssl.convert.conversion.convert",
        [
            "a.pth -o b.pth",
            "hf://owner/repo/file -o c --hub --half --licence mit --about a.md --source voco "
            "--prefix swin. --hu -175 250 0 1 --no-hu --spacing 3 2 1 --crop 96 96 96 --axes xyz "
            "--merging legacy --dims 3 --rgb",
        ],
    ),
    "embed": (
        "nnssl.embed.work.embed",
        [
            "-i a b -o c",
            "-i a -o c -c a.pth --masks m --dense 4 --nifti --window 16 32 32 --spacing 3 2 1 "
            "--picture names -np 2 -device cpu",
            "-i a -o c --picture --window whole",
        ],
    ),
    "export": (
        "nnssl.export.export",
        ["-m a -o b", "-m a -o b -f all -chk checkpoint_best.pth --formats pt2"],
    ),
}


class CaughtError(Exception):
    """In place of parsing, or of the work: with the parser, or the request."""


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def catch(self: argparse.ArgumentParser, *_: object) -> None:
        raise CaughtError(self)

    monkeypatch.setattr(limits, "cores", lambda: 64)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", catch)
    with pytest.raises(CaughtError) as caught:
        getattr(cli, command)()
    monkeypatch.undo()
    return caught.value.args[0]


def read(action: argparse.Action, word: str) -> str:
    """What argparse makes of one word."""
    kind = action.type or str
    try:
        return repr(kind(word))
    except argparse.ArgumentTypeError as error:
        return f"error: {error}"
    except (ValueError, TypeError):
        return f"error: invalid {kind.__name__} value: {word!r}"


def described(parser: argparse.ArgumentParser) -> dict:
    """Everything of a parser that a user sees, but the order within a group."""
    rows = {}
    for group in parser._action_groups:
        for action in (a for a in group._group_actions if a.dest != "help"):
            flags = action.option_strings or [action.metavar or action.dest]
            default = action.default
            row = {
                "group": group.title,
                "name": action.dest,
                "kind": type(action).__name__,
                "metavar": action.metavar,
                "nargs": action.nargs,
                "const": action.const,
                "default": [default] if isinstance(default, str) and action.nargs else default,
                "required": action.required,
                "choices": list(action.choices) if action.choices else None,
                "help": action.help and action.help % {"default": default},
            }
            if action.nargs != 0:
                row["reads"] = {word: read(action, word) for word in WORDS}
            rows[" ".join(flags)] = row
    texts = {"prog": parser.prog, "description": parser.description, "epilog": parser.epilog}
    return {**texts, "options": dict(sorted(rows.items()))}


def requested(command: str, line: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The fields of what the command's function is given."""
    module, _, function = LINES[command][0].rpartition(".")

    def catch(request: object, *_: object) -> None:
        raise CaughtError(dataclasses.asdict(request))

    monkeypatch.setattr(import_module(module), function, catch)
    monkeypatch.setattr(limits, "cores", lambda: 64)
    monkeypatch.setattr("atexit.register", lambda *_: None)
    monkeypatch.setattr(sys, "argv", [f"nnssl_{command}", *line.split()])
    with pytest.raises(CaughtError) as caught:
        getattr(cli, command)()
    monkeypatch.undo()
    return dict(sorted(caught.value.args[0].items()))


def found(command: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """As the golden file has it: JSON, in which a tuple is a list and a path a text."""
    rows = described(parser_of(command, monkeypatch))
    if command in LINES:
        rows["lines"] = {line: requested(command, line, monkeypatch) for line in LINES[command][1]}
    return json.loads(json.dumps(rows, default=str))


STUDY = {
    "arms": [
        {"name": "scratch", "start": "scratch", "encoder": "tiny"},
        {
            "name": "here",
            "start": "pretrain",
            "method": "smit",
            "datasets": [501],
            "options": {
                "batch_size": 2, "crop": [32, 32], "dims": 2, "fp32": True, "np": 3,
                "compile": False, "hu": [-1000, 1000], "set": ["lr=1e-4", "mask_ratio=0.6"],
                "num_gpus": 2, "epochs": None, "pattern": ["*/ct.nii.gz"], "cache": "off",
                "no_hu": True, "spacing": [3, 2, "1e0"], "probe": 503, "seed": 1,
            },
        },
        {
            "name": "there",
            "start": "imagenet",
            "weights": "w.pth",
            "options": {"rgb": True, "hu": [0, 1], "source": "imagenet", "dims": 3, "crop": [2, 2]},
        },
    ],
    "tasks": [{"name": "organs", "dataset": 501}],
    "recipe": {
        "trainer": "SwinFrozenTrainer", "decoder": "light", "patch": [32, 48, 32], "batch_size": 3,
        "epochs": 4, "iterations": 50, "val_iterations": 6, "foreground": 1, "lr": "1e-4",
        "head_lr": 20, "encoder_lr": 0.2, "layer_decay": 0.8, "weight_decay": 0.0,
        "warmup_iterations": 9, "drop_path": 0.2, "ema": 0.9, "unfreeze_every": 2.5,
        "lora_rank": 4, "lora_alpha": 6, "schedule": "cosine", "warmup_epochs": None,
        "mirror": False,
    },
}  # fmt: skip


def typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a study types for its arms, as `STUDY` describes them."""
    import yaml

    from nnssl.study.design.description import load_study
    from nnssl.study.execution import datasets, pretraining
    from nnssl.study.execution.arm_plans import Plans
    from nnssl.study.execution.pretraining import Start
    from nnssl.study.execution.runs import ArmOnTask

    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    study = load_study(path)
    scratch, *arms = study.arms
    monkeypatch.setattr(datasets.Dataset, "number", property(lambda self: str(self.given)))
    lines = {arm.name: pretraining.commands_of(Start(study, arm), Path("made"))[0] for arm in arms}
    mirrored = dataclasses.replace(scratch, recipe={"mirror": True})
    for name, arm in (("plans", scratch), ("mirrored", mirrored)):
        lines[name] = Plans(ArmOnTask(study, study.tasks[0], arm)).command
    return {name: [word.replace(f"{folder}/", "") for word in line] for name, line in lines.items()}


def test_what_a_study_types_is_what_it_typed(tmp_path, monkeypatch):
    golden = json.loads((GOLDEN / "typed.json").read_text(encoding="utf-8"))
    assert typed(tmp_path, monkeypatch) == golden


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_takes_is_what_it_took(command, monkeypatch):
    golden = json.loads((GOLDEN / f"{command}.json").read_text(encoding="utf-8"))
    now = found(command, monkeypatch)
    assert set(now["options"]) == set(golden["options"])
    assert now == golden


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    assert parser.description
    plain = {"seed", "steps", "batch_size", "epochs", "weight_decay"}  # whose names say it
    assert [a.dest for a in parser._actions if not a.help and a.dest not in plain] == []


@pytest.mark.parametrize("command", LINES)
def test_the_golden_lines_give_every_option(command, monkeypatch):
    words = {word for line in LINES[command][1] for word in line.split()}
    flags = {flag for a in parser_of(command, monkeypatch)._actions for flag in a.option_strings}
    assert flags - words <= {"-h", "--help", "--list", "-num_gpus"}


def write(name: str, content: dict) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (GOLDEN / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    print(name)


if __name__ == "__main__":
    for command in COMMANDS:
        with pytest.MonkeyPatch.context() as patch:
            write(command, found(command, patch))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as temporary:
        write("typed", typed(Path(temporary), patch))
