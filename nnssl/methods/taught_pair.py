"""Methods of two views: the student predicts what its teacher says of the other one."""

from __future__ import annotations

from dataclasses import dataclass

from nnssl.encoder.swin import Swin
from nnssl.methods.method import MethodConfig, PairMethod
from nnssl.modules.bounds import require_at_least, require_fraction
from nnssl.modules.heads import Branch, Predictor
from nnssl.modules.teacher import Teacher
from nnssl.types import LAST


@dataclass(frozen=True)
class TaughtPairConfig(MethodConfig):
    """What both have: the teacher's momentum, to 1 along a cosine, and the widths of the heads."""

    teacher_momentum: float = 0.99
    head_hidden: int = 4096
    head_out: int = 256

    def __post_init__(self) -> None:
        require_fraction(self, "teacher_momentum")
        require_at_least(1, self, "head_hidden", "head_out")


class TaughtPairMethod(PairMethod):
    """Student and teacher with projectors of so many layers, and the student's predictor."""

    config: TaughtPairConfig

    def __init__(self, encoder: Swin, config: TaughtPairConfig, layers: int) -> None:
        super().__init__()
        encoder = encoder.copied(maskable=False, wanted=LAST)  # nothing is hidden
        self.config = config
        self.student = Branch(encoder, config.head_hidden, config.head_out, layers)
        self.teacher = Teacher(self.student)
        self.predictor = Predictor(config.head_out, config.head_hidden)

    @property
    def encoder(self) -> Swin:
        return self.student.encoder

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.teacher.follow(self.student, self.config.teacher_momentum, lambda: self.progress)
