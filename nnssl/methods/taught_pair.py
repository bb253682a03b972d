"""Methods of two views: the student predicts what its teacher says of the other one."""

from __future__ import annotations

from typing import Protocol

from nnssl.encoder.swin import Swin
from nnssl.methods.method import PairMethod
from nnssl.modules.heads import Branch, Predictor
from nnssl.modules.teacher import Teacher
from nnssl.types import LAST


class TaughtPairConfig(Protocol):
    """What the config of such a method has."""

    @property
    def teacher_momentum(self) -> float: ...

    @property
    def head_hidden(self) -> int: ...

    @property
    def head_out(self) -> int: ...


class TaughtPairMethod(PairMethod):
    """Student and teacher with projectors of so many layers, and the student's predictor."""

    def __init__(self, encoder: Swin, config: TaughtPairConfig, layers: int) -> None:
        super().__init__()
        encoder = encoder.copied(maskable=False, wanted=LAST)  # nothing is hidden
        self.momentum = config.teacher_momentum
        self.student = Branch(encoder, config.head_hidden, config.head_out, layers)
        self.teacher = Teacher(self.student)
        self.predictor = Predictor(config.head_out, config.head_hidden)

    @property
    def encoder(self) -> Swin:
        return self.student.encoder

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.teacher.follow(self.student, self.momentum, lambda: self.progress)
