"""One module per method, and the table of all methods."""

from __future__ import annotations

from nnssl.methods.byol import BYOL
from nnssl.methods.cpc import CPC
from nnssl.methods.dino import DINO
from nnssl.methods.ibot import IBOT
from nnssl.methods.method import Method, MethodConfig, Step
from nnssl.methods.mocov3 import MoCoV3
from nnssl.methods.parcels import Parcels
from nnssl.methods.rotation import Rotation
from nnssl.methods.simclr import SimCLR
from nnssl.methods.simmim import SimMIM
from nnssl.methods.smit import SMIT
from nnssl.methods.swinunetr import SwinUNETRPretext

METHODS: dict[str, type[Method]] = {
    "smit": SMIT,
    "simmim": SimMIM,
    "dino": DINO,
    "ibot": IBOT,
    "simclr": SimCLR,
    "mocov3": MoCoV3,
    "cpc": CPC,
    "swinunetr": SwinUNETRPretext,
    "rotation": Rotation,
    "byol": BYOL,
    "parcels": Parcels,
}

__all__ = ["METHODS", "Method", "MethodConfig", "Step"]
