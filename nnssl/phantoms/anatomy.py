"""One patient of phantoms: which tissues there are, where, and with what Hounsfield units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nnssl.phantoms.shapes import Inside, between, both, column, ellipsoid, stripes, without

LABELS = {"background": 0, "liver": 1, "kidney": 2, "canal": 3}


@dataclass(frozen=True)
class Part:
    """One tissue: where it is, its HU, the std of its texture in HU, and its label (0: none)."""

    inside: Inside
    hu: float
    texture: float = 8.0
    label: int = 0


@dataclass(frozen=True)
class Anatomy:
    """One patient: the parts in painting order (a later one covers an earlier), and a bend of them
    all.
    """

    parts: tuple[Part, ...]
    bend: np.ndarray  # [3 axes, 3 numbers]: amplitude in mm, wavelength in mm, phase
    noise: float  # std in HU


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    # half depth and half width of the body, mm
    trunk = np.array([rng.uniform(95, 125), rng.uniform(140, 175)])
    contrast = (
        rng.uniform(0, 1) if rng.uniform() < 0.6 else 0.0
    )  # fraction of an enhanced scan's HU
    soft = rng.uniform(45, 60)  # muscle
    parts = (
        *_body(rng, trunk, soft),
        *_chest(rng, trunk, soft, contrast),
        *_abdomen(rng, trunk, soft, contrast),
        *_spine(rng, trunk, soft),
    )
    bend = np.stack(
        [rng.uniform(2, 6, 3), rng.uniform(120, 260, 3), rng.uniform(0, 2 * np.pi, 3)], axis=1
    )
    return Anatomy(parts, bend, noise=rng.uniform(8, 22))


def _body(rng: np.random.Generator, trunk: np.ndarray, soft: float) -> Iterable[Part]:
    if rng.uniform() < 0.5:
        lower = trunk[0] + rng.uniform(12, 18)
        yield Part(column((lower + 8, 0.0), (8.0, 190.0), power=8), hu=-780, texture=3)
    power = rng.uniform(2.1, 2.6)
    fat = rng.uniform(8, 24)
    yield Part(column((0, 0), tuple(trunk), power), hu=rng.uniform(-115, -95), texture=6)
    yield Part(column((0, 0), tuple(trunk - fat), power), hu=soft, texture=14)
    yield Part(
        column((-6, 0), tuple(trunk - fat - 16), power), hu=rng.uniform(-105, -85), texture=10
    )


def _chest(
    rng: np.random.Generator, trunk: np.ndarray, soft: float, contrast: float
) -> Iterable[Part]:
    base = rng.uniform(15, 45)  # where the lungs end, mm above the middle
    depth, width = trunk
    ribs = both(
        between(base - 60, 1e3), stripes(rng.uniform(24, 30), 0.4, rng.uniform(0, 30), tilt=0.35)
    )
    wall = without(
        column((0, 0), (depth - 20, width - 20), 2.3), column((0, 0), (depth - 28, width - 28), 2.3)
    )
    for side in (-1, 1):
        centre = (base + 80, -2.0, side * width * 0.43)
        yield Part(
            ellipsoid(centre, (95, depth * 0.72, width * 0.38)),
            hu=rng.uniform(-860, -760),
            texture=45,
        )
    yield Part(
        ellipsoid((base + 55, -depth * 0.25, width * 0.08), (55, depth * 0.4, width * 0.3)),
        hu=42 + 110 * contrast,
        label=0,
    )
    yield Part(both(ribs, wall), hu=rng.uniform(280, 450), texture=60)


def _abdomen(
    rng: np.random.Generator, trunk: np.ndarray, soft: float, contrast: float
) -> Iterable[Part]:
    depth, width = trunk
    organ = soft + rng.uniform(0, 12) + 50 * contrast  # liver and spleen share it
    vessel = 42 + 150 * contrast
    kidney = 40 + 110 * contrast
    top = rng.uniform(-5, 30)
    yield from _bowel(rng, trunk, kidney)
    yield Part(
        ellipsoid(
            (top, -depth * 0.12, -width * 0.4), (rng.uniform(60, 80), depth * 0.62, width * 0.42)
        ),
        hu=organ,
        texture=12,
        label=LABELS["liver"],
    )
    spleen = (top - rng.uniform(0, 15), depth * 0.25, width * 0.55)
    yield Part(ellipsoid(spleen, (rng.uniform(32, 48), 30, 24)), hu=organ, texture=12)
    for side in (-1, 1):
        centre = (rng.uniform(-60, -25), depth * rng.uniform(0.3, 0.4), side * rng.uniform(58, 70))
        radii = (rng.uniform(42, 54), rng.uniform(23, 29), rng.uniform(23, 29))
        yield Part(ellipsoid(centre, radii), hu=kidney, texture=16, label=LABELS["kidney"])
    yield Part(column((depth * 0.18, rng.uniform(4, 14)), (11, 11)), hu=vessel, texture=4)
    yield Part(column((depth * 0.16, rng.uniform(-24, -14)), (10, 12)), hu=vessel * 0.8, texture=4)


def _bowel(rng: np.random.Generator, trunk: np.ndarray, hu: float) -> Iterable[Part]:
    """Loops with the HU and the size of a kidney, in front of where kidneys are; some hold gas."""
    depth, width = trunk
    for _ in range(int(rng.integers(5, 10))):
        centre = (
            rng.uniform(-130, -10),
            -depth * rng.uniform(0.0, 0.6),
            rng.uniform(-0.6, 0.6) * width,
        )
        radii = tuple(rng.uniform(16, 34, 3))
        yield Part(ellipsoid(centre, radii), hu=hu + rng.uniform(-12, 12), texture=16)
        if rng.uniform() < 0.35:
            gas = (centre[0], centre[1] - radii[1] * 0.4, centre[2])
            yield Part(ellipsoid(gas, tuple(0.5 * r for r in radii)), hu=-850, texture=10)


def _spine(rng: np.random.Generator, trunk: np.ndarray, soft: float) -> Iterable[Part]:
    y = trunk[0] * 0.42  # the middle of the vertebral bodies
    body, canal = (rng.uniform(15, 18), rng.uniform(20, 24)), (11.0, 13.0)
    behind = y + body[0] + canal[0]
    period = rng.uniform(32, 38)
    disc = stripes(period, 0.25, rng.uniform(0, period))
    yield Part(
        column((behind, 0), (canal[0] + 9, canal[1] + 9)), hu=rng.uniform(260, 420), texture=50
    )
    yield Part(column((y, 0), body), hu=rng.uniform(300, 450), texture=50)
    yield Part(column((y, 0), (body[0] - 4, body[1] - 4)), hu=rng.uniform(130, 230), texture=40)
    yield Part(both(column((y, 0), body), disc), hu=soft + 25, texture=10)
    yield Part(column((behind, 0), canal), hu=rng.uniform(5, 15), texture=5, label=LABELS["canal"])
    yield Part(
        column((behind, 0), (6.0, 7.0)),
        hu=soft - rng.uniform(0, 12),
        texture=6,
        label=LABELS["canal"],
    )
