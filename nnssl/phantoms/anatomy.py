"""One patient of phantoms: which tissues there are, where, and with what Hounsfield units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nnssl.phantoms.solids import Inside, between, both, column, ellipsoid, stripes, without

LABELS = {"background": 0, "liver": 1, "kidney": 2, "canal": 3}
CANAL = (11.0, 13.0)  # radii of the spinal canal (y, x), mm
Pair = tuple[float, float]  # (y, x) in mm


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
    is_enhanced = rng.uniform() < 0.6
    contrast = rng.uniform(0, 1) if is_enhanced else 0.0  # fraction of an enhanced scan's HU
    soft = rng.uniform(45, 60)  # muscle
    parts = (
        *_body_parts(rng, trunk, soft),
        *_chest(rng, trunk, contrast),
        *_abdomen(rng, trunk, soft, contrast),
        *_spine(rng, trunk, soft),
    )
    return Anatomy(parts, _bend(rng), noise=rng.uniform(8, 22))


def _bend(rng: np.random.Generator) -> np.ndarray:
    """[3 axes, 3 numbers]: amplitude, wavelength, phase."""
    amplitude, wavelength = rng.uniform(2, 6, 3), rng.uniform(120, 260, 3)
    return np.stack([amplitude, wavelength, rng.uniform(0, 2 * np.pi, 3)], axis=1)


def _body_parts(rng: np.random.Generator, trunk: np.ndarray, soft: float) -> Iterable[Part]:
    """The table, skin and fat, muscle, and the fat around the organs."""
    if rng.uniform() < 0.5:
        yield _patient_table(trunk[0] + rng.uniform(12, 18))
    power = rng.uniform(2.1, 2.6)
    muscle = trunk - rng.uniform(8, 24)
    yield Part(column((0, 0), tuple(trunk), power), hu=rng.uniform(-115, -95), texture=6)
    yield Part(column((0, 0), tuple(muscle), power), hu=soft, texture=14)
    cavity = column((-6, 0), tuple(muscle - 16), power)
    yield Part(cavity, hu=rng.uniform(-105, -85), texture=10)


def _patient_table(top: float) -> Part:
    """`top`: y of its upper side, mm."""
    return Part(column((top + 8, 0.0), (8.0, 190.0), power=8), hu=-780, texture=3)


def _chest(rng: np.random.Generator, trunk: np.ndarray, contrast: float) -> Iterable[Part]:
    base = rng.uniform(15, 45)  # where the lungs end, mm above the middle
    ribs = _ribs(rng, trunk, base)
    for side in (-1, 1):
        yield _lung(rng, trunk, base, side)
    yield _heart(trunk, base, contrast)
    yield Part(ribs, hu=rng.uniform(280, 450), texture=60)


def _ribs(rng: np.random.Generator, trunk: np.ndarray, base: float) -> Inside:
    """Tilted stripes of the chest's wall."""
    wall = without(column((0, 0), tuple(trunk - 20), 2.3), column((0, 0), tuple(trunk - 28), 2.3))
    bars = stripes(rng.uniform(24, 30), 0.4, rng.uniform(0, 30), tilt=0.35)
    return both(between(base - 60, 1e3), bars, wall)


def _lung(rng: np.random.Generator, trunk: np.ndarray, base: float, side: int) -> Part:
    depth, width = trunk
    centre = (base + 80, -2.0, side * width * 0.43)
    lung = ellipsoid(centre, (95, depth * 0.72, width * 0.38))
    return Part(lung, hu=rng.uniform(-860, -760), texture=45)


def _heart(trunk: np.ndarray, base: float, contrast: float) -> Part:
    depth, width = trunk
    centre = (base + 55, -depth * 0.25, width * 0.08)
    return Part(ellipsoid(centre, (55, depth * 0.4, width * 0.3)), hu=42 + 110 * contrast)


def _abdomen(
    rng: np.random.Generator, trunk: np.ndarray, soft: float, contrast: float
) -> Iterable[Part]:
    organ = soft + rng.uniform(0, 12) + 50 * contrast  # liver and spleen share it
    kidney = 40 + 110 * contrast
    top = rng.uniform(-5, 30)
    yield from _bowel(rng, trunk, kidney)
    yield _liver(rng, trunk, organ, top)
    yield _spleen(rng, trunk, organ, top)
    for side in (-1, 1):
        yield _kidney(rng, trunk, kidney, side)
    yield from _vessels(rng, trunk, 42 + 150 * contrast)


def _liver(rng: np.random.Generator, trunk: np.ndarray, hu: float, top: float) -> Part:
    depth, width = trunk
    centre = (top, -depth * 0.12, -width * 0.4)
    radii = (rng.uniform(60, 80), depth * 0.62, width * 0.42)
    return Part(ellipsoid(centre, radii), hu, texture=12, label=LABELS["liver"])


def _spleen(rng: np.random.Generator, trunk: np.ndarray, hu: float, top: float) -> Part:
    depth, width = trunk
    centre = (top - rng.uniform(0, 15), depth * 0.25, width * 0.55)
    return Part(ellipsoid(centre, (rng.uniform(32, 48), 30, 24)), hu, texture=12)


def _kidney(rng: np.random.Generator, trunk: np.ndarray, hu: float, side: int) -> Part:
    centre = (rng.uniform(-60, -25), trunk[0] * rng.uniform(0.3, 0.4), side * rng.uniform(58, 70))
    radii = (rng.uniform(42, 54), rng.uniform(23, 29), rng.uniform(23, 29))
    return Part(ellipsoid(centre, radii), hu, texture=16, label=LABELS["kidney"])


def _vessels(rng: np.random.Generator, trunk: np.ndarray, hu: float) -> Iterable[Part]:
    """Aorta and vena cava."""
    depth, _ = trunk
    yield Part(column((depth * 0.18, rng.uniform(4, 14)), (11, 11)), hu, texture=4)
    yield Part(column((depth * 0.16, rng.uniform(-24, -14)), (10, 12)), hu * 0.8, texture=4)


def _bowel(rng: np.random.Generator, trunk: np.ndarray, hu: float) -> Iterable[Part]:
    """Loops with the HU and the size of a kidney, in front of where kidneys are; some hold gas."""
    for _ in range(int(rng.integers(5, 10))):
        yield from _loop(rng, trunk, hu)


def _loop(rng: np.random.Generator, trunk: np.ndarray, hu: float) -> Iterable[Part]:
    depth, width = trunk
    z, y = rng.uniform(-130, -10), -depth * rng.uniform(0.0, 0.6)
    x = rng.uniform(-0.6, 0.6) * width
    radii = tuple(rng.uniform(16, 34, 3))
    yield Part(ellipsoid((z, y, x), radii), hu=hu + rng.uniform(-12, 12), texture=16)
    if rng.uniform() < 0.35:
        bubble = ellipsoid((z, y - radii[1] * 0.4, x), tuple(0.5 * mm for mm in radii))
        yield Part(bubble, hu=-850, texture=10)


def _spine(rng: np.random.Generator, trunk: np.ndarray, soft: float) -> Iterable[Part]:
    y = trunk[0] * 0.42  # the middle of the vertebral bodies
    body = (rng.uniform(15, 18), rng.uniform(20, 24))
    behind = (y + body[0] + CANAL[0], 0.0)  # the middle of the canal
    period = rng.uniform(32, 38)
    discs = stripes(period, 0.25, rng.uniform(0, period))
    yield Part(column(behind, _larger(CANAL, 9)), hu=rng.uniform(260, 420), texture=50)
    yield from _vertebrae(rng, (y, 0.0), body)
    yield Part(both(column((y, 0), body), discs), hu=soft + 25, texture=10)
    yield from _canal(rng, behind, soft)


def _vertebrae(rng: np.random.Generator, centre: Pair, radii: Pair) -> Iterable[Part]:
    """Their bodies: dense outside, less so inside."""
    yield Part(column(centre, radii), hu=rng.uniform(300, 450), texture=50)
    yield Part(column(centre, _larger(radii, -4)), hu=rng.uniform(130, 230), texture=40)


def _canal(rng: np.random.Generator, centre: Pair, soft: float) -> Iterable[Part]:
    """Fluid, and the cord in it."""
    label = LABELS["canal"]
    yield Part(column(centre, CANAL), hu=rng.uniform(5, 15), texture=5, label=label)
    cord = soft - rng.uniform(0, 12)
    yield Part(column(centre, (6.0, 7.0)), hu=cord, texture=6, label=label)


def _larger(radii: Pair, mm: float) -> Pair:
    return radii[0] + mm, radii[1] + mm
