"""The map from Hounsfield units to the network's input, and back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Values = TypeVar("Values", "np.ndarray", "np.float32", "Tensor")  # of the input of a network


@dataclass(frozen=True)
class HUPolicy:
    """How Hounsfield units become network input: a rising piecewise linear map, clipped at its
    ends.

    HU are clipped to [low, high], moved by the interior knots, then (level - mean) / std. The ends
    keep their values, so without knots this is the plain linear map: clip, minus mean, divided by
    std.

    interior:  (HU, level) of each knot between the ends, both rising within (low, high).
    mean, std: over body voxels, of the clipped and moved values.
    Raises ValueError where the map does not rise.
    """

    low: float
    high: float
    mean: float
    std: float
    interior: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.std > 0):
            raise ValueError(
                f"HU policy needs low < high and std > 0, got low={self.low}, high={self.high}, "
                f"std={self.std}"
            )
        interior = tuple((float(hu), float(level)) for hu, level in self.interior)
        object.__setattr__(self, "interior", interior)
        self._require_rising_knots()

    def _require_rising_knots(self) -> None:
        axes = zip(*self.interior, strict=True)
        if not all(_rises(self.low, *axis, self.high) for axis in axes):
            raise ValueError(
                f"HU policy needs knots that rise from low to high in HU and in level, got {self}"
            )

    @property
    def knots(self) -> tuple[tuple[float, float], ...]:
        """(HU, network input) of each corner of the map, its two ends included."""
        levels = ((self.low, self.low), *self.interior, (self.high, self.high))
        return tuple((hu, (level - self.mean) / self.std) for hu, level in levels)

    @property
    def bends(self) -> tuple[tuple[float, float, float], ...]:
        """(start, end, slope - 1) of each piece of `bend`, standardised; () for a linear map."""
        return _bends(self._corners) if self.interior else ()

    @property
    def _corners(self) -> list[tuple[float, float]]:
        """`knots` with their HU in standardised units."""
        return [((hu - self.mean) / self.std, value) for hu, value in self.knots]

    def standardise(self, hu: Values) -> Values:
        """HU to (clipped HU - mean) / std, out of place: as nnU-Net's CTNormalization with these
        numbers.
        """
        return (hu.clip(self.low, self.high) - self.mean) / self.std

    def bend(self, standardised: Values) -> Values:
        """From `standardise`, resampled or not, to network input; as it is for a linear map."""
        if not self.interior:
            return standardised
        clipped = standardised.clip(self.bends[0][0], self.bends[-1][1])
        return clipped + sum(gain * (clipped.clip(x0, x1) - x0) for x0, x1, gain in self.bends)

    def normalise(self, hu: Values) -> Values:
        """HU (numpy array or tensor) to network input, out of place."""
        return self.bend(self.standardise(hu))

    def restore(self, normalised: Values) -> Values:
        """Network input back to (clipped) HU."""
        return cast("Values", self._straighten(normalised) * self.std + self.mean)

    def _straighten(self, bent: Values) -> Values:
        """The inverse of `bend`."""
        if not self.interior:
            return bent
        pieces = _bends([(value, hu) for hu, value in self._corners])
        return cast(
            "Values", bent + sum(gain * (bent.clip(y0, y1) - y0) for y0, y1, gain in pieces)
        )

    def describe(self) -> str:
        """For people: what is done to HU."""
        clip = f"clip to [{self.low:g}, {self.high:g}]"
        if not self.interior:
            return f"{clip}, minus {self.mean:g}, divided by {self.std:g}"
        knots = ", ".join(f"{hu:g} -> {value:.2f}" for hu, value in self.knots)
        return f"{clip}, piecewise linear: {knots}"

    @classmethod
    def from_dict(cls, values: dict) -> HUPolicy:
        """The inverse of `to_dict`, whose files call the standard deviation "sd".

        Raises TypeError for other keys and ValueError for values that are no policy.
        """
        return cls(**{"std" if name == "sd" else name: value for name, value in values.items()})

    def to_dict(self) -> dict:
        """For JSON and `from_dict`; of a linear map as it was before there were knots."""
        linear = {"low": self.low, "high": self.high, "mean": self.mean, "sd": self.std}
        return linear | (
            {"interior": [list(knot) for knot in self.interior]} if self.interior else {}
        )


def _bends(corners: list[tuple[float, float]]) -> tuple[tuple[float, float, float], ...]:
    """(start, end, slope - 1) of each piece between (x, y) corners."""
    return tuple((x0, x1, (y1 - y0) / (x1 - x0) - 1) for (x0, y0), (x1, y1) in pairwise(corners))


def _rises(*values: float) -> bool:
    return all(before < after for before, after in pairwise(values))
