"""Bounds of a config's fields, with the same words for all of them. Each function raises ValueError
for the first of the named fields that is outside; NaN is.
"""

from __future__ import annotations

from collections.abc import Callable


def require_above_zero(config: object, *names: str) -> None:
    """Above 0."""
    _require(config, names, lambda value: value > 0, "must be above 0")


def require_at_least(least: int, config: object, *names: str) -> None:
    """`least` or more."""
    _require(config, names, lambda value: value >= least, f"must be at least {least}")


def require_not_negative(config: object, *names: str) -> None:
    """0 or more."""
    _require(config, names, lambda value: value >= 0, "must be 0 or more")


def require_fraction(config: object, *names: str) -> None:
    """Within [0, 1]."""
    _require(config, names, lambda value: 0 <= value <= 1, "must be from 0 to 1")


def require_below_one(config: object, *names: str) -> None:
    """Within [0, 1)."""
    _require(config, names, _is_below_one, "must be from 0 to below 1")


def require_part_of_run(config: object, *names: str) -> None:
    """Within [0, 1): the papers count some in epochs."""
    said = "is a fraction of the run's steps, from 0 to below 1"
    _require(config, names, _is_below_one, said)


def require_open_fraction(config: object, *names: str) -> None:
    """Within (0, 1)."""
    _require(config, names, lambda value: 0 < value < 1, "must be above 0 and below 1")


def require_weights(config: object, *names: str) -> None:
    """Weights of loss terms: 0 or more, and one above 0."""
    require_not_negative(config, *names)
    if not any(getattr(config, name) > 0 for name in names):
        raise ValueError(f"one of {', '.join(names)} must be above 0")


def _is_below_one(value: float) -> bool:
    return 0 <= value < 1


def _require(
    config: object, names: tuple[str, ...], holds: Callable[[float], bool], said: str
) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise ValueError(f"{name} {said}, got {value}")
