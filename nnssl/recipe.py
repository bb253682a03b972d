"""How a network is fine-tuned: the entry `nnssl_recipe` of the plans, and the flags of `nnssl_plan`
that write it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil

from nnssl import options
from nnssl.options import Check, above, at_least, option

RECIPE = "nnssl_recipe"
OF_LORA = ("lora_rank", "lora_alpha")
LONG = 5000  # iterations, from which on a training is regularised by stochastic depth
# with it the published rates, about 1e-4, are met at a decoder's 5e-4; nnU-Net's own: 0.1 to 0.33
PRETRAINED_LR = 0.3
DROP_PATH = 0.1  # of long trainings
FRACTION = Check("from 0 to 1", lambda value: 0 <= value <= 1)
FRACTION_BELOW_1 = Check("from 0 to below 1", lambda value: 0 <= value < 1)
DECAY = Check("above 0 and at most 1", lambda value: 0 < value <= 1)
SCHEDULE = Check("poly or cosine", lambda value: value in ("poly", "cosine"))


@dataclass(frozen=True)
class Recipe:
    """The numbers of a fine-tuning; None: derived from the others, as the properties say."""

    epochs: int = option(  # nnU-Net's own, as the next two
        1000, "length of the training; default: %(default)s", metavar="N", check=at_least(1)
    )
    iterations: int = option(250, "per epoch; default: %(default)s", metavar="N", check=at_least(1))
    val_iterations: int = option(
        50, "per epoch; default: a fifth of --iterations", metavar="N", check=at_least(1)
    )
    foreground: float = option(
        0.33,
        "fraction of the patches drawn around a labelled voxel; default: nnU-Net's %(default)s",
        metavar="FRACTION",
        check=FRACTION,
    )
    mirror: bool = option(
        True,
        "no mirroring in augmentation and prediction, for labels that distinguish left from right",
    )
    lr: float = option(
        5e-4, "AdamW's learning rate of the decoder; default: %(default)s", check=above(0)
    )
    head_lr: float = option(  # studies/experiments.md: what it changes
        30.0,
        "learning rate of the segmentation heads, as a multiple of the decoder's; default: "
        "%(default)s",
        check=above(0),
    )
    encoder_lr: float | None = option(
        None,
        "learning rate of the encoder's last block, as a multiple of the decoder's; default: "
        f"{PRETRAINED_LR}, from a random start 1",
        check=at_least(0),
    )
    layer_decay: float = option(
        0.9,
        "learning rate of an encoder block, as a multiple of the next one's; default: %(default)s",
        check=DECAY,
    )
    warmup_iterations: int | None = option(
        None,
        "iterations of the warm-up; default: a twentieth of all, 50 to 2500",
        metavar="N",
        check=at_least(0),
    )
    warmup_epochs: float | None = option(  # as older plans have it
        None, "the same in epochs", metavar="N", check=at_least(0)
    )
    unfreeze_every: float | None = option(
        None,
        (
            "for SwinGradualTrainer: epochs from unfreezing one stage to the next; default: a "
            "twentieth of all"
        ),
        metavar="N",
        check=at_least(0),
    )
    lora_rank: int = option(
        8,
        ("for SwinLoRATrainer: rank of the updates; default: %(default)s"),
        metavar="N",
        check=at_least(1),
    )
    lora_alpha: float = option(
        16.0,
        ("for SwinLoRATrainer: scale of the updates, divided by the rank; default: %(default)s"),
        metavar="N",
        check=above(0),
    )
    schedule: str = option(
        "poly", "of the learning rate: poly or cosine; default: %(default)s", check=SCHEDULE
    )
    # not on norms, biases and position biases (Liu et al. 2021)
    weight_decay: float = option(0.05, "AdamW's; default: %(default)s", check=at_least(0))
    # norm of the gradient, as nnU-Net's own transformer trainers
    clip: float = option(1.0, flag=None, check=above(0))
    drop_path: float | None = option(
        None,
        f"of the encoder; default: {DROP_PATH}, below {LONG} iterations 0",
        check=FRACTION_BELOW_1,
    )
    ema: float | None = option(
        None,
        (
            "decay of the moving average of the weights per step; 0: off; default: 0.99 to 0.999 "
            "by iterations"
        ),
        check=FRACTION_BELOW_1,
    )

    def __post_init__(self) -> None:
        options.require(self)
        if None not in (self.warmup_iterations, self.warmup_epochs):
            raise ValueError(
                "give the warm-up in iterations or in epochs, got both: warmup_iterations "
                f"{self.warmup_iterations} and warmup_epochs {self.warmup_epochs}"
            )

    @classmethod
    def of(cls, plans: dict) -> Recipe:
        """From the plans; an unknown key raises ValueError that lists the known ones."""
        values = plans.get(RECIPE, {})
        _require_known_keys(values, [field.name for field in fields(cls)])
        return cls(**values)

    @classmethod
    def chosen(cls, values: Mapping) -> Recipe:
        """From the options a user gave; None counts as left out. Validation takes a fifth of the
        iterations, as nnU-Net's 50 of 250, unless it is given.
        """
        said = {name: value for name, value in values.items() if value is not None}
        if "iterations" in said:
            said.setdefault("val_iterations", max(1, said["iterations"] // 5))
        return cls(**said)

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def total(self) -> int:
        """Iterations of the training."""
        return self.epochs * self.iterations

    @property
    def warmup(self) -> int:
        """Iterations: by default a twentieth of all, at least 50 and at most 2500, but never more
        than a quarter.

        Adam's first steps move every weight by the learning rate, whatever the gradient, and so
        would disturb what was learnt before. What that takes is counted in steps, not in epochs of
        any length.
        """
        if self.warmup_iterations is not None:
            return self.warmup_iterations
        if self.warmup_epochs is not None:
            return round(self.warmup_epochs * self.iterations)
        return ceil(min(2500, max(50, self.total / 20), self.total / 4))

    @property
    def stochastic_depth(self) -> float:
        """The encoder's drop path in this training: a matter of its length, and not of what the
        pretraining had.
        """
        if self.drop_path is not None:
            return self.drop_path
        return DROP_PATH if self.total >= LONG else 0.0

    @property
    def average(self) -> float:
        """What the average of the weights keeps in a step: by default it is over the last twentieth
        of the training, at least 100 iterations and at most 1000.
        """
        return 1 - 1 / min(1000, max(100, self.total / 20)) if self.ema is None else self.ema

    def encoder_scale(self, pretrained: bool) -> float:
        """The learning rate of the encoder's last block over that of the decoder."""
        if self.encoder_lr is not None:
            return self.encoder_lr
        return PRETRAINED_LR if pretrained else 1.0

    @property
    def unfreeze(self) -> float:
        """Epochs."""
        return self.epochs / 20 if self.unfreeze_every is None else self.unfreeze_every


def _require_known_keys(values: Mapping, known: list[str]) -> None:
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"unknown key(s) in the plans' {RECIPE}: {', '.join(unknown)}; known: "
            f"{', '.join(known)}"
        )
