"""The step at which the encoder scored best in the probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnssl.train.probe import Probe


def best_so_far(before: dict, probe: Probe, step: int, metrics: dict) -> dict:
    """What a checkpoint holds of the probe after `step`: its `metrics`, the best Dice and its step.

    before: the same of an earlier step, or nothing. Only results on the same cases of the same
    dataset are compared: many datasets have a case_000.
    """
    probed = {name: value for name, value in metrics.items() if name.startswith("probe_")}
    data = {"dataset": probe.dataset, "cases": probe.cases}
    if any(before.get(name) != value for name, value in data.items()):
        before = {}
    return {**_best(before, probed["probe_dice"], step), **data, "step": step, **probed}


def _best(before: dict, dice: float, step: int) -> dict:
    if dice > before.get("best", -1.0):
        return {"best": dice, "best_step": step}
    return {name: before.get(name) for name in ("best", "best_step")}
