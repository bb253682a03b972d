"""Runs methods, views, modules and encoder with every annotation checked at every call.

Started by test_contracts.py in a process of its own: jaxtyping and beartype put their checks in
while a module is imported, and compilers do not see through them. The package imports neither: its
shapes are words for readers and for pyright until this file makes them known.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable

import jaxtyping
from beartype import beartype

KINDS = ("Bool", "Float", "Int", "Shaped")


def check(function: Callable) -> Callable:
    """beartype, for functions that name a shape: others have protocols, which it cannot check."""
    named = any(kind in str(hint) for hint in function.__annotations__.values() for kind in KINDS)
    return beartype(function) if named else function


checker = types.ModuleType("checker")
checker.check = check
sys.modules["checker"] = checker
CHECKED = ["nnssl.views", "nnssl.modules", "nnssl.encoder", "nnssl.methods"]
for kind in KINDS:
    setattr(builtins, kind, getattr(jaxtyping, kind))
hook = jaxtyping.install_import_hook(CHECKED, "checker.check")

import torch  # noqa: E402
from micro import method, steps, views  # noqa: E402

from nnssl.encoder import swin, visible  # noqa: E402
from nnssl.encoder.attention import fused, reference  # noqa: E402
from nnssl.methods import METHODS  # noqa: E402

hook.uninstall()
visible.Swin = swin.Swin  # a name for readers there: the two modules need each other

CASES = [
    *((name, {}) for name in METHODS),
    ("smit", {"visible_only": True, "mask_block": 8, "w_parcels": 1.0, "decoder": "linear"}),
    ("simmim", {"visible_only": True, "mask_block": 8}),
    ("simmim", {"decoder": "light", "mask_block": 8}),
    ("dino", {"local_views": 0, "pooled_maps": 5}),
    ("ibot", {"local_views": 2, "shared_head": False}),
    ("simclr", {"queue": 4}),
]


def check_views(name: str, settings: dict, crop: tuple[int, ...]) -> None:
    instance = method(name, spatial_dims=len(crop), **settings)
    steps(instance, 1, crop=crop)
    with torch.no_grad():
        instance.eval().show(views(instance, crop=crop))


def attend() -> None:
    qkv, bias = torch.randn(4, 8, 3, 2, 5), torch.randn(2, 8, 8)
    for kind in (fused, reference):
        kind.attention(qkv, bias, None)


def encode() -> None:
    for taps, dims in (("stage", 3), ("merge", 2)):
        config = swin.SwinConfig(
            dims, embed_dim=6, depths=(1, 2, 1, 1), heads=(1, 1, 2, 2), taps=taps,
            convolutions=taps == "merge", out_norms=taps == "stage", windows="monai",
        )  # fmt: skip
        encoder = swin.Swin(config, maskable=True, checkpointing=True)
        image = torch.randn(1, 1, *(33, 40, 20)[:dims])
        hidden = torch.rand(1, *encoder.token_grid(tuple(image.shape[2:]))) < 0.5
        sum(each.sum() for each in encoder(image, hidden)).backward()


def refuses_another_shape() -> None:
    """Else nothing above has proven anything."""
    from nnssl.modules.heads import pooled

    encoder = swin.Swin(swin.SwinConfig(embed_dim=6, heads=(1, 1, 2, 2)))
    for call in (
        lambda: pooled(torch.zeros(3)),
        lambda: encoder(torch.zeros(1, 1, 16, 16, 16, dtype=torch.long)),
        lambda: METHODS["simmim"].views(method("simmim"), torch.zeros(2, 3, 16, 16, 16), []),
    ):
        try:
            call()
        except jaxtyping.TypeCheckError:
            continue
        raise AssertionError("a wrong shape passed")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, settings in CASES[: int(sys.argv[1])] if len(sys.argv) > 1 else CASES:
        for crop in ((32, 32), (32, 32, 32)):
            check_views(name, settings, crop)
    attend()
    encode()
    refuses_another_shape()
    print("all shapes are as they are said to be")
