"""One finding of the doctor: that something is right, worth knowing, or wrong and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    state: str  # ok, note or wrong
    says: str  # may have several lines
    remedy: str = ""  # the line to type; of what is wrong, always

    def __post_init__(self) -> None:
        if self.is_wrong and not self.remedy:
            raise ValueError(f"a wrong finding needs the command that fixes it: {self.says}")

    @property
    def is_wrong(self) -> bool:
        return self.state == WRONG


def ok(says: str) -> Finding:
    return Finding(OK, says)


def note(says: str, remedy: str = "") -> Finding:
    return Finding(NOTE, says, remedy)


def wrong(says: str, remedy: str) -> Finding:
    return Finding(WRONG, says, remedy)


def first_line(error: BaseException) -> str:
    """An exception's message, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
