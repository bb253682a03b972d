"""The teacher: an exponential moving average of the student, never trained, never stochastic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from nnssl.modules.replay import number
from nnssl.modules.running import Stepped
from nnssl.modules.schedules import cosine

if TYPE_CHECKING:
    from typing_extensions import Self


Student = TypeVar("Student", bound=nn.Module)


class Teacher(Stepped, Generic[Student]):
    """Starts as a copy of the student; moves towards it by `update`; always in evaluation mode (no
    drop path).
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.model: Student = copy.deepcopy(student).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: object) -> object:
        return self.model(*args)

    def follow(self, student: nn.Module, start: float, progress: Callable[[], float]) -> None:
        """`update`, with a momentum from `start` to 1 along a cosine (Grill 2020).

        progress: of the run, when it is called; a replayed step calls it again.
        """
        self.update(student, number(lambda: 1 - cosine(start, 1.0, progress())))

    @torch.no_grad()
    def update(self, student: nn.Module, fraction: float | Tensor) -> None:
        """theta_t <- (1 - fraction) theta_t + fraction theta_s, matched by name.

        fraction: 1 - momentum; a number, or a scalar on the device.

        Buffers stay the teacher's own: what they hold (running moments) is of what the teacher
        sees, which is not masked.
        """
        parameters = dict(student.named_parameters())
        names, own = zip(*self.model.named_parameters(), strict=True)
        theirs = [parameters[name].detach() for name in names]
        if self.step_counts is None:
            # its declaration knows no scalar tensor
            torch._foreach_lerp_(own, theirs, cast("float", fraction))
            return
        way = torch._foreach_sub(theirs, own)
        torch._foreach_mul_(way, self.step_counts * fraction)
        torch._foreach_add_(own, way)
