"""How a run goes, whatever its method."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nnssl.options import require
from nnssl.train.options import Options


@dataclass(frozen=True)
class RunConfig:
    """How long, how large, how precise; `batch_size`: scans of all processes and parts."""

    steps: int
    batch_size: int
    accumulate: int = Options.accumulate
    seed: int = Options.seed
    log_every: int = Options.log_every
    save_every: int = Options.save_every
    workers: int = 1
    bf16: bool = False  # `nnssl.train.precision`
    compile: bool = Options.compile
    tensorboard: bool = Options.tensorboard
    wandb: bool = Options.wandb

    # How a run is monitored and fed changes no weight, so a resumed run may differ in it.
    FREE = ("log_every", "save_every", "workers", "tensorboard", "wandb")
    # These do, but a run that could not continue for them would be lost: it continues and says so.
    REPORTED = ("steps", "bf16", "compile")

    def __post_init__(self) -> None:
        require(self, Options)

    @classmethod
    def of(cls, options: Options, **derived: int) -> RunConfig:
        """As `options` say, but for what is derived."""
        said = {
            each.name: vars(options)[each.name]
            for each in fields(cls)
            if each.name in vars(options)
        }
        return cls(**{**said, **derived})
