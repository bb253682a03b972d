"""A method whose student learns the output of a teacher, which follows the student.

Caron et al. 2021 (DINO, arXiv 2104.14294); Zhou et al. 2022 (iBOT, arXiv 2111.07832).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnssl.encoder.swin import Swin
from nnssl.methods.method import Method, MethodConfig
from nnssl.modules.encoder_with_heads import DistillationConfig, EncoderWithHeads
from nnssl.modules.heads import Prototypes
from nnssl.modules.late import hold
from nnssl.modules.replay import number
from nnssl.modules.schedules import ramp
from nnssl.modules.teacher import Teacher
from nnssl.types import Shape
from nnssl.views.spatial import region_size

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class DistillationMethodConfig(DistillationConfig, MethodConfig):
    """What every such method can be set to."""


class DistillationMethod(Method):
    """A student and the teacher that follows it: everything of such a method but its views and its
    loss. Its views are cut from a region that is larger than the crop.
    """

    config: DistillationMethodConfig

    def __init__(self, student: EncoderWithHeads[Swin], config: DistillationMethodConfig) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0
        self.student = student
        self.teacher = Teacher(student)
        for part in student.modules():
            if isinstance(part, Prototypes):
                hold(part.weight, self._trains_prototypes)

    @staticmethod
    def region(crop: Shape) -> Shape:
        """128 for 96, as SMIT's paper."""
        return region_size(crop)

    @property
    def encoder(self) -> Swin:
        """The teacher's, or the student's with `export=student`."""
        chosen = self.teacher.model if self.config.export == "teacher" else self.student
        return chosen.encoder

    def teacher_temperature(self, delay: float = 0.0) -> float | Tensor:
        """The teacher's temperature now; its warm-up begins at `delay` (fraction of the run)."""
        c = self.config
        ends = c.teacher_temperature_start, c.teacher_temperature_end
        return number(lambda: ramp(*ends, self.progress, delay, c.temperature_warmup))

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.teacher.follow(self.student, self.config.teacher_momentum, lambda: self.progress)

    def with_local_views(
        self, logits: Tensor, views: dict[str, Tensor]
    ) -> Float[Tensor, "views batch prototypes"]:
        """The student's `logits` of the global views [2B K], and where there are local views those
        of these: [V B K].
        """
        if "local" in views:
            local = self.student(views["local"].flatten(0, 1)).image
            logits = torch.cat([logits, local])
        return logits.unflatten(0, (-1, views["global"].shape[1]))

    def get_extra_state(self) -> float:
        return self.progress

    def set_extra_state(self, state: float) -> None:
        self.progress = state

    def _trains_prototypes(self) -> bool:
        return self.progress >= self.config.freeze_prototypes
