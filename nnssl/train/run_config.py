"""Settings of a run that do not depend on its method."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nnssl.options import require
from nnssl.train.pretrain_options import Options


@dataclass(frozen=True)
class RunConfig:
    """How long, how large, how precise; `batch_size`: scans of all processes and parts."""

    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = Options.seed
    log_every: int = Options.log_every
    save_every: int = Options.save_every
    workers: int = 1
    bf16: bool = False  # `nnssl.train.precision`
    compile: bool = Options.compile
    tensorboard: bool = Options.tensorboard
    wandb: bool = Options.wandb
    graph: bool = Options.graph  # `nnssl.train.graph`

    # How a run is monitored and fed changes no weight, so a resumed run may differ in it.
    FREE = ("log_every", "save_every", "workers", "tensorboard", "wandb", "graph")
    # These do, but a run that could not continue for them would be lost: it continues and reports
    # them.
    REPORTED = ("steps", "accumulate", "bf16", "compile")

    def __post_init__(self) -> None:
        require(self, Options)

    @classmethod
    def of(cls, options: Options, **derived: int) -> RunConfig:
        """As `options` say, but for what is derived."""
        given = vars(options)
        names = [field.name for field in fields(cls) if field.name in given]
        return cls(**{**{name: given[name] for name in names}, **derived})


def what_changed(before: dict, now: RunConfig, step: int) -> list[str]:
    """In which of `RunConfig.REPORTED` a run that continues after `step` differs, in words."""
    notes = [
        f"{name}: was {before[name]}, now {getattr(now, name)}"
        for name in RunConfig.REPORTED
        if before.get(name, getattr(now, name)) != getattr(now, name)
    ]
    if before["steps"] != now.steps:
        notes.append(
            f"from step {step} on, the learning rate and all other schedules follow those of a "
            f"run of {now.steps} steps"
        )
    return notes
