"""CT-like phantoms: made trunks with plausible Hounsfield units, for the demo and the tests.

A phantom is an abdomen and lower chest: fat, muscle, lungs, heart, liver, spleen, kidneys, bowel,
aorta, ribs, spine with its canal, sometimes a table. Anatomy, contrast, texture, noise, spacing and
size differ by case.

The three labelled organs need context, not a threshold: the liver has the HU of the spleen and
nearly that of muscle, the kidneys those of the bowel, the spinal canal those of fluid and muscle.
All three stay what they are in a mirrored image.

Chance is apart from effect: `draw_anatomy` draws, `render` paints. Coordinates are (z, y, x) in mm
from the middle of the trunk: z to the head, y to the back, x to the patient's left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.files import write_json
from nnssl.types import Shape, Spacing

LABELS = {"background": 0, "liver": 1, "kidney": 2, "canal": 3}
AIR = -1000.0

Grid = tuple[np.ndarray, np.ndarray, np.ndarray]  # z, y, x in mm, each [Z Y X]
Inside = Callable[[Grid], np.ndarray]  # Bool, True inside the part


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


@dataclass(frozen=True)
class Phantom:
    """`hu` int16 [Z Y X], `labels` uint8 [Z Y X] with the values of LABELS, `spacing` in mm."""

    hu: np.ndarray
    labels: np.ndarray
    spacing: Spacing


def phantom(seed: int, shape: Shape | None = None, spacing: Spacing | None = None) -> Phantom:
    """The phantom of this seed, the same on every machine with the same numpy.

    The field of view is some 210 x 290 x 370 mm. Without `shape` [Z Y X] and `spacing` (mm) voxels
    are 4 to 7 mm wide, so that everything stays small; with one of them the other follows from the
    field of view. Raises ValueError on an impossible shape or spacing.
    """
    rng = np.random.default_rng(seed)
    anatomy = draw_anatomy(rng)
    # the field of view, mm
    extent = (rng.uniform(190, 230), rng.uniform(275, 310), rng.uniform(350, 385))
    coarse = (rng.uniform(4.0, 7.0), *[rng.uniform(5.0, 6.5)] * 2)
    _check(shape, spacing)
    if spacing is None:
        spacing = (
            coarse if shape is None else tuple(e / n for e, n in zip(extent, shape, strict=True))
        )
    if shape is None:
        shape = tuple(max(2, round(e / s)) for e, s in zip(extent, spacing, strict=True))
    return render(anatomy, shape, spacing, rng)


def _check(shape: Shape | None, spacing: Spacing | None) -> None:
    if shape is not None and (len(shape) != 3 or min(shape) < 2):
        raise ValueError(
            f"a phantom needs three axes of at least 2 voxels, got shape {tuple(shape)}"
        )
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError(f"a phantom needs three spacings above 0 mm, got {tuple(spacing)}")


def ellipsoid(centre: Spacing, radii: Spacing) -> Inside:
    def inside(grid: Grid) -> np.ndarray:
        z, y, x = (((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True))
        return z + y + x < 1

    return inside


def column(centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Inside:
    """An endless column along z; `power` above 2 makes the section more like a rectangle."""

    def inside(grid: Grid) -> np.ndarray:
        _, y, x = grid
        return (
            np.abs((y - centre[0]) / radii[0]) ** power
            + np.abs((x - centre[1]) / radii[1]) ** power
            < 1
        )

    return inside


def both(*shapes: Inside) -> Inside:
    return lambda grid: np.logical_and.reduce([shape(grid) for shape in shapes])


def without(shape: Inside, hole: Inside) -> Inside:
    return lambda grid: shape(grid) & ~hole(grid)


def between(low: float, high: float) -> Inside:
    """Slices with low < z < high, in mm."""
    return lambda grid: (grid[0] > low) & (grid[0] < high)


def stripes(period: float, fraction: float, phase: float, tilt: float = 0.0) -> Inside:
    """Layers along z, each `fraction` of a `period` thick (mm); `tilt`: mm of z per mm to the front
    (ribs).
    """
    return lambda grid: np.mod(grid[0] - tilt * grid[1] + phase, period) < fraction * period


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


def render(anatomy: Anatomy, shape: Shape, spacing: Spacing, rng: np.random.Generator) -> Phantom:
    """Paint the parts, blur over the voxel borders (partial volume), add texture and noise."""
    grid = _bent(_grid(shape, spacing), anatomy.bend)
    hu = np.full(shape, AIR, np.float32)
    texture = np.zeros(shape, np.float32)
    labels = np.zeros(shape, np.uint8)
    for part in anatomy.parts:
        inside = part.inside(grid)
        hu[inside], texture[inside], labels[inside] = part.hu, part.texture, part.label
    hu = blur(hu, passes=1, fraction=0.12)
    hu += texture * _unit(blur(rng.standard_normal(shape, np.float32), passes=3))
    hu += anatomy.noise * _unit(blur(rng.standard_normal(shape, np.float32), passes=1))
    return Phantom(
        np.clip(np.rint(hu), -1024, 3071).astype(np.int16), labels, tuple(map(float, spacing))
    )


def _grid(shape: Shape, spacing: Spacing) -> Grid:
    axes = [
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * s
        for n, s in zip(shape, spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z, y, x


def _bent(grid: Grid, bend: np.ndarray) -> Grid:
    """Each axis shifted by a slow wave along the next one: no organ stays an exact ellipsoid."""
    return tuple(
        grid[axis] + amplitude * np.sin(2 * np.pi * grid[(axis + 1) % 3] / wavelength + phase)
        for axis, (amplitude, wavelength, phase) in enumerate(bend.astype(np.float32))
    )


def blur(volume: np.ndarray, passes: int, fraction: float = 0.25) -> np.ndarray:
    """Each neighbour gives `fraction` of itself, along every axis, `passes` times; edges repeated."""
    for _ in range(passes):
        for axis in range(volume.ndim):
            pad = [(1, 1) if a == axis else (0, 0) for a in range(volume.ndim)]
            wide = np.moveaxis(np.pad(volume, pad, mode="edge"), axis, 0)
            volume = np.moveaxis(
                fraction * (wide[:-2] + wide[2:]) + (1 - 2 * fraction) * wide[1:-1], 0, axis
            )
    return np.ascontiguousarray(volume)


def _unit(noise: np.ndarray) -> np.ndarray:
    return noise / noise.std()


def write_scan(path: Path | str, volume: np.ndarray, spacing: Spacing) -> None:
    """One [Z Y X] volume as an image file of the suffix's kind (.nii.gz, .nrrd, .mha)."""
    import SimpleITK  # only who writes files needs it

    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(tuple(reversed(spacing)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def write_folder(
    folder: Path | str, seeds: Iterable[int], shape: Shape | None = None
) -> list[Path]:
    """Unlabelled phantoms, one `phantom_<seed>.nii.gz` a seed, for pretraining."""
    paths = []
    for seed in seeds:
        made = phantom(seed, shape)
        paths.append(Path(folder) / f"phantom_{seed:04d}.nii.gz")
        write_scan(paths[-1], made.hu, made.spacing)
    return paths


def write_nnunet_dataset(
    folder: Path | str,
    training: Iterable[int],
    unseen: Iterable[int] = (),
    shape: Shape | None = None,
) -> None:
    """An nnU-Net raw dataset in `folder` (`DatasetXXX_Name`); the unseen cases come with their
    truth.
    """
    folder = Path(folder)
    training = list(training)
    for part, seeds in (("Tr", training), ("Ts", unseen)):
        for seed in seeds:
            made = phantom(seed, shape)
            case = f"phantom_{seed:04d}"
            write_scan(folder / f"images{part}" / f"{case}_0000.nii.gz", made.hu, made.spacing)
            write_scan(folder / f"labels{part}" / f"{case}.nii.gz", made.labels, made.spacing)
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": len(training),
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description)
