"""The learning rate: a closed form of the iteration, which nnU-Net counts by its epochs."""

from __future__ import annotations

from math import ceil, cos, pi

import torch

from nnssl.recipe import Recipe


class Schedule:
    """Sets each group's learning rate before every step of the optimiser.

    nnU-Net saves no state of a schedule, and calls `step` once per epoch, with its number. There
    the count of iterations begins again, so that a resumed training continues as the uninterrupted
    one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
        self.optimizer, self.recipe, self.iteration = optimizer, recipe, 0
        optimizer.register_step_pre_hook(self._advance)

    def step(self, epoch: int) -> None:
        """An epoch begins."""
        self.iteration = epoch * self.recipe.iterations
        self.set()

    def set(self) -> None:
        """Each group's learning rate in the iteration to come."""
        rate = learning_rate(self.iteration, self.recipe)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _advance(self, *_: object) -> None:
        self.set()
        self.iteration += 1


class Unfreezing(Schedule):
    """The decoder first, then stage 4, 3, 2, 1 and the patch embedding, `recipe.unfreeze` epochs
    one after another.

    What is frozen has the learning rate 0, to which AdamW's decay is proportional: it stays bit by
    bit. It is not taken out of the graph, so that DDP and torch.compile have one graph throughout,
    and Adam knows the size of a gradient when its turn comes. The price is that an epoch takes as
    long as that of a full fine-tuning.
    """

    def set(self) -> None:
        super().set()
        epoch = self.iteration // self.recipe.iterations
        for group in self.optimizer.param_groups:
            if epoch < group["part"] * self.recipe.unfreeze:
                group["lr"] = 0.0


def unfreezing(recipe: Recipe) -> str:
    """Line for the log: when each part begins to learn."""
    names = ("decoder", "stage 4", "stage 3", "stage 2", "stage 1", "patch embedding")
    epochs = (
        f"{name} from epoch {ceil(part * recipe.unfreeze)}" for part, name in enumerate(names)
    )
    return f"Gradual unfreezing: {', '.join(epochs)} of {recipe.epochs}"


def learning_rate(iteration: int, recipe: Recipe) -> float:
    """The decoder's: linear up to `recipe.lr` during the warm-up, then down to 0 at the end of the
    training.
    """
    warmup = min(recipe.warmup, recipe.total)
    if iteration < warmup:
        return recipe.lr * (iteration + 1) / warmup
    progress = min(1.0, (iteration - warmup) / max(1, recipe.total - warmup))
    return recipe.lr * (_poly if recipe.schedule == "poly" else _cosine)(progress)


def _poly(progress: float) -> float:
    """nnU-Net's own."""
    return (1 - progress) ** 0.9


def _cosine(progress: float) -> float:
    return (1 + cos(pi * progress)) / 2
