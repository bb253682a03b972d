"""How a run goes, whatever its method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunConfig:
    """How long, how large, how precise; `batch_size`: scans of all processes and parts."""

    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    log_every: int = 10
    save_every: int = 1000
    workers: int = 1
    bf16: bool = False  # `nnssl.train.precision`
    compile: bool = False
    tensorboard: bool = False
    wandb: bool = False
    graph: bool = False  # `nnssl.train.graph`

    # How a run is monitored and fed changes no weight, so a resumed run may differ in it.
    FREE = ("log_every", "save_every", "workers", "tensorboard", "wandb", "graph")
    # These do, but a run that could not continue for them would be lost: it continues and says so.
    TOLD = ("steps", "bf16", "compile")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def what_changed(before: dict, now: RunConfig, step: int) -> list[str]:
    """Of a run that continues behind `step`: in which of `RunConfig.TOLD` it differs, in words."""
    told = [
        f"{name}: was {before[name]}, now {getattr(now, name)}"
        for name in RunConfig.TOLD
        if before.get(name, getattr(now, name)) != getattr(now, name)
    ]
    if before["steps"] != now.steps:
        told.append(
            f"the learning rate and all that follows the run's course go from step {step} on as in "
            f"a run of {now.steps} steps"
        )
    return told
