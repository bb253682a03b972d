"""CT-like phantoms: synthetic trunks with plausible Hounsfield units, for the demo and the tests.

A phantom is an abdomen and lower chest: fat, muscle, lungs, heart, liver, spleen, kidneys, bowel,
aorta, ribs, spine with its canal, sometimes a table. Anatomy, contrast, texture, noise, spacing and
size differ by case.

The three labelled organs need context, not a threshold: the liver has the HU of the spleen and
nearly that of muscle, the kidneys those of the bowel, the spinal canal those of fluid and muscle.
All three stay what they are in a mirrored image.

Sampling is separate from rendering: `draw_anatomy` samples, `render` paints. Coordinates are (z, y,
x) in mm from the middle of the trunk: z to the head, y to the back, x to the patient's left.
"""

from nnssl.phantoms.anatomy import LABELS, Anatomy, Part, draw_anatomy
from nnssl.phantoms.image_files import write_folder, write_nnunet_dataset, write_scan
from nnssl.phantoms.render import AIR, Phantom, blur, phantom, render

__all__ = [
    "AIR",
    "LABELS",
    "Anatomy",
    "Part",
    "Phantom",
    "blur",
    "draw_anatomy",
    "phantom",
    "render",
    "write_folder",
    "write_nnunet_dataset",
    "write_scan",
]
