"""Rows of studies that nobody ran, whose answers are known."""

from __future__ import annotations

import numpy as np

ARMS = ("scratch", "smit", "simmim", "dino", "rotation")
GAIN = {"scratch": 0.0, "smit": 0.08, "simmim": 0.05, "dino": 0.02, "rotation": -0.03}
LAYERS = [
    "patch embedding",
    "stage 1 block 1",
    "stage 1 block 2",
    "stage 2 block 1",
    "stage 2 block 2",
]


def rows(
    tasks: dict[str, str] | None = None,
    arms: tuple[str, ...] = ARMS,
    budgets: tuple[int | str, ...] = (2, 5, 10, "all"),
    seeds: int = 3,
    cases: int = 12,
    labels: int = 2,
    epochs: int = 20,
    seed: int = 0,
    reuse_too: bool = True,
) -> list[dict]:
    """A study in which arm `a` is better than scratch by about GAIN[a], less so with more labels.
    tasks: modality.
    """
    tasks = {"organs": "CT", "hippocampus": "MR"} if tasks is None else tasks
    generator = np.random.default_rng(seed)
    description = {
        "name": "made",
        "arms": [
            {"name": arm, "start": "scratch" if arm == "scratch" else "checkpoint"} for arm in arms
        ],
        "tasks": [{"name": task, "modality": modality} for task, modality in tasks.items()],
    }
    records = [
        {
            "kind": "study",
            "name": "made",
            "description": description,
            "versions": {"nnssl": "0"},
            "machine": {},
        }
    ]
    for task, modality in tasks.items():
        hard = generator.normal(0, 0.05, size=(cases, labels))
        for arm in arms:
            for budget in budgets:
                trained = 24 if budget == "all" else budget
                gain = (
                    GAIN.get(arm, 0.0)
                    * (1 - np.log(trained) / 6)
                    * (1 if modality == "CT" else 0.5)
                )
                level = 0.5 + 0.09 * np.log(trained) + gain
                for number in range(seeds):
                    run = f"{task}__{arm}__{budget}__{number}"
                    records.append(run_row(run, task, arm, budget, number, trained, epochs))
                    dice = np.clip(level + hard + generator.normal(0, 0.02, size=hard.shape), 0, 1)
                    records += _cases(run, dice)
                    records += _epochs(run, level, epochs, 4 if arm == "scratch" else 2, generator)
    return records + (reuse(tuple(tasks), arms, budgets, seeds, generator) if reuse_too else [])


def run_row(
    run: str, task: str, arm: str, budget: int | str, seed: int, cases: int = 5, epochs: int = 20
) -> dict:
    known = {"configuration": "3d_fullres", "trainer": "SwinSSLTrainer", "plans": f"nnssl_{arm}"}
    identity = {
        "run": run,
        "task": task,
        "arm": arm,
        "budget": budget,
        "cases": cases,
        "seed": seed,
    }
    return {
        "kind": "run",
        **identity,
        **known,
        "state": "done",
        "hours": 0.5,
        "epochs": epochs,
        "reason": None,
    }


def case_row(run: str, case: str, label: str, dice: float | None, **others) -> dict:
    return {"kind": "case", "run": run, "case": case, "label": label, "dice": dice, **others}


def _cases(run: str, dice: np.ndarray) -> list[dict]:
    return [
        case_row(
            run,
            f"case_{c:02d}",
            f"organ {m}",
            float(value),
            surface_dice=float(value) ** 0.5,
            hd95=20 * (1 - value),
        )
        for (c, m), value in np.ndenumerate(dice)
    ]


def _epochs(
    run: str, level: float, epochs: int, slowness: float, generator: np.random.Generator
) -> list[dict]:
    dice = level * (1 - np.exp(-np.arange(1, epochs + 1) / slowness)) + generator.normal(
        0, 0.005, size=epochs
    )
    return [
        {
            "kind": "epoch",
            "run": run,
            "epoch": e,
            "dice": float(d),
            "train_loss": -d,
            "val_loss": -d,
            "seconds": 36.0,
        }
        for e, d in enumerate(dice)
    ]


def reuse(tasks, arms, budgets, seeds: int, generator: np.random.Generator) -> list[dict]:
    records = []
    for task in tasks:
        for arm in arms[1:]:
            for number in range(seeds):
                for second in (f"{arm} {budgets[0]}", f"{arm} {budgets[-1]}"):
                    values = np.clip(1 - 0.1 * abs(np.subtract.outer(range(5), range(5))), 0, 1)
                    row = {
                        "kind": "cka",
                        "task": task,
                        "first": f"{arm} pretrained",
                        "second": second,
                        "seed": number,
                    }
                    records.append(
                        {
                            **row,
                            "rows": LAYERS,
                            "columns": LAYERS,
                            "values": values.tolist(),
                            "volumes": 50,
                        }
                    )
                common = {
                    "kind": "attention",
                    "task": task,
                    "arm": arm,
                    "budget": budgets[0],
                    "seed": number,
                }
                records += [
                    {
                        **common,
                        "layer": layer,
                        "head": head,
                        "mm": float(generator.uniform(5, 9)),
                        "uniform_mm": 9.5,
                    }
                    for layer in LAYERS[1:]
                    for head in (1, 2)
                ]
    return records
