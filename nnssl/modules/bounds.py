"""Bounds of a config's fields, with the same words for all of them."""

from __future__ import annotations


def require_above_zero(config: object, *names: str) -> None:
    """Raises ValueError for the first field that is not."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def require_at_least(least: int, config: object, *names: str) -> None:
    """Raises ValueError for the first field below `least`."""
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def require_part_of_run(config: object, *names: str) -> None:
    """Raises ValueError for the first field outside [0, 1): the papers count some in epochs."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ValueError(
                f"{name} is a fraction of the run's steps, from 0 to below 1, got {value}"
            )


def require_fraction(config: object, *names: str) -> None:
    """Raises ValueError for the first field outside [0, 1]."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")


def require_open_fraction(config: object, *names: str) -> None:
    """Raises ValueError for the first field outside (0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < 1:
            raise ValueError(f"{name} must be above 0 and below 1, got {value}")


def require_not_negative(config: object, *names: str) -> None:
    """Raises ValueError for the first field below 0."""
    for name in names:
        value = getattr(config, name)
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")


def require_weights(config: object, *names: str) -> None:
    """Raises ValueError unless these weights of loss terms are 0 or more, and one is above 0."""
    require_not_negative(config, *names)
    if not any(getattr(config, name) > 0 for name in names):
        raise ValueError(f"one of {', '.join(names)} must be above 0")
