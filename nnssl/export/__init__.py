"""`nnssl_export`: a network that nnU-Net has trained, as files that need neither nnU-Net nor this
package.

trained    a model folder of nnU-Net's and one of its folds -> the network, with what belongs to it
formats    the network -> model.pt2 (`torch.export`) and model.onnx, compared with PyTorch's logits
expects    model.json: what must be done to an image before the network, and to its logits after it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnssl import files
from nnssl.options import option
from nnssl.types import FINAL, PrintFn

CARD = "model.json"
FORMATS = ("onnx", "pt2")


class ExportError(ValueError):
    """A network cannot be exported; the message says why and what to do."""


@dataclass(frozen=True)
class ExportRequest:
    """The options of `nnssl_export`."""

    model: Path = option(
        help="$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION", flag="-m", metavar="FOLDER"
    )
    output: Path = option(
        help="model.onnx, model.pt2 and model.json are written here", flag="-o", metavar="FOLDER"
    )
    fold: str = option("0", "fold 0 to 4, or all; default: %(default)s", flag="-f", metavar="FOLD")
    checkpoint: str = option(FINAL, "default: %(default)s", flag="-chk", metavar="FILE")
    formats: Sequence[str] = option(FORMATS, "default: all", choices=FORMATS)


def export(request: ExportRequest, print_fn: PrintFn = print) -> Path:
    """Write the files that `request` asks for, and model.json; the path of the latter.

    Every file is read back and run on random images, one and two at a time, before it gets its
    name. Raises ExportError where a package or a file is missing, the network cannot be traced, or
    a file's logits are not PyTorch's.
    """
    from nnssl.export import expects, formats, trained

    formats.require_packages(request.formats)
    model = trained.load_model_folder(request.model, request.fold, request.checkpoint)
    program = formats.trace(model)
    written = {}
    for name in request.formats:
        path = request.output / f"model.{name}"
        difference = formats.write_verified(program, model, path)
        written[path.name] = {"sha256": files.sha256(path), "largest_difference": difference}
        print_fn(f"{path}: logits within {difference:.1e} of PyTorch's, relative to the largest")
    card = request.output / CARD
    files.write_json(card, expects.card(model, written))
    print_fn(f"{card}: input requirements of the network, and the meaning of its logits")
    return card
