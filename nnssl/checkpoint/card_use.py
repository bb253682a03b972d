"""The card's sections on how to use the weights, and on what input they need."""

from __future__ import annotations

from nnssl.checkpoint.describe import by
from nnssl.checkpoint.file import Checkpoint
from nnssl.encoder.config import SwinConfig
from nnssl.hu import HUPolicy

USE = """With nnssl-swin and nnU-Net installed:

```bash
{commands}
```
"""
INSPECT = "nnssl_inspect {named}                      # what is in it"
EMBED = "nnssl_embed -c {named} -i SCANS -o OUT{option}     # features of scans"
PLAN = "nnssl_plan -d DATASET -c {named}           # and on to nnUNetv2_train -tr SwinSSLTrainer"
LOAD = """
```python
import nnssl

encoder = nnssl.load_encoder("{named}"{argument}
maps = encoder(encoder.preprocess("scan.nii.gz"))  # five maps {maps}, of strides 2 to 32
```
"""


def gives_features(loaded: Checkpoint) -> bool:
    """Whether `nnssl_embed` and `nnssl.load_encoder` take it: scans have one channel."""
    return loaded.encoder_config.in_channels == 1


def use_section(named: str, loaded: Checkpoint) -> str:
    """The commands, with the spacing that has to be given where the file has none."""
    lines = [INSPECT, EMBED, PLAN] if gives_features(loaded) else [INSPECT, PLAN]
    option, argument = " --spacing Z Y X", ", spacing=(z, y, x))  # mm"
    if loaded.spacing:
        option, argument = "", ")"
    commands = "\n".join(line.format(named=named, option=option) for line in lines)
    maps = "[1 C Z Y X]" if loaded.encoder_config.spatial_dims == 3 else "[Z C Y X]"
    in_python = LOAD.format(named=named, argument=argument, maps=maps)
    used = USE.format(commands=commands) + (in_python if gives_features(loaded) else "")
    return f"## Use\n\n{used}"


def input_section(loaded: Checkpoint) -> str:
    """Channels, axes, spacing and the map of the intensities."""
    mm = loaded.spacing
    spacing = f"resampled to {by(mm)} mm" if mm else "at an unknown spacing"
    shape = _input_shape(loaded.encoder_config)
    return (
        f"## Input\n\n{shape}, axes (z, y, x) as nnU-Net reads them, {spacing}.\n"
        + _intensities(loaded.hu)
    )


def _input_shape(config: SwinConfig) -> str:
    channels = config.in_channels
    count = "One channel" if channels == 1 else f"{channels} channels"
    axes = "Z Y X]" if config.spatial_dims == 3 else "Y X], axial slices"
    return f"{count}, [B {channels} {axes}"


def _intensities(hu: HUPolicy | None) -> str:
    if hu is None:
        return "Not in HU: each scan minus its mean, divided by its standard deviation.\n"
    knots = "".join(f"| {x:g} | {value:.4f} |\n" for x, value in hu.knots)
    return (
        "HU become input by this map, linear between its points and constant beyond:\n\n"
        f"| HU | input |\n|---|---|\n{knots}"
    )
