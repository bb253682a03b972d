"""A network as a file of `torch.export` or ONNX, kept only if its logits match PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nnssl import files
from nnssl.export import ExportError
from nnssl.export.trained import Trained

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
INPUT, OUTPUT = "image", "logits"
# fp32 sums in another order; as a fraction of the largest logit
TOLERANCE = 1e-3
BATCHES = (1, 2)  # compared; the files take any number
ONE_FILE = 1 << 30  # bytes of weights: protobuf, which ONNX files are, ends at 2 GiB


def require_packages(formats: Sequence[str]) -> None:
    """Raises ExportError that names the extra where a format's packages are not installed."""
    for name in formats:
        if missing := [package for package in NEEDS[name] if find_spec(package) is None]:
            without = " ".join(other for other in NEEDS if not NEEDS[other])
            raise ExportError(
                f'{name} needs {", ".join(missing)}: pip install "nnssl-swin[export]"; '
                f"without: --formats {without}"
            )


def trace(model: Trained) -> ExportedProgram:
    """The network as a graph of PyTorch's own operations, for its patch and any batch size.

    Window attention is the plain formula in it, not the GPU's kernel: the same function. Raises
    ExportError where PyTorch cannot trace the network.
    """
    example = _images(model, 2)
    with torch.no_grad():
        # what depends on the grid alone, such as the windows, is made now and is constant later
        model.network(example[:1])
        try:
            return torch.export.export(
                model.network, (example,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False
            )
        except Exception as error:  # whatever a foreign network makes of it
            raise _untraceable(model, error) from error


def _untraceable(model: Trained, error: Exception) -> ExportError:
    first_line = str(error).strip().splitlines()[0]
    return ExportError(
        f"{type(model.network).__name__} of {model.checkpoint} cannot be traced by torch.export: "
        f"{type(error).__name__}: {first_line}"
    )


def write_verified(program: ExportedProgram, model: Trained, path: Path) -> float:
    """Write `path`, by its suffix; the largest difference to PyTorch's logits, as a fraction.

    The fraction is of the largest absolute logit. Raises ExportError above TOLERANCE; then nothing
    is left at `path`.
    """
    save, read = {".onnx": (_save_onnx, _read_onnx), ".pt2": (_save_pt2, _read_pt2)}[path.suffix]
    with files.atomic(path) as temporary:
        save(program, temporary)
        difference = _difference(read(temporary), model)
        _require_close(difference, path)
    return difference


def _require_close(difference: float, path: Path) -> None:
    if not difference <= TOLERANCE:  # nor NaN
        raise ExportError(
            f"{path} was not written: its logits differ from PyTorch's by {difference:.1e} of the "
            f"largest, more than {TOLERANCE:g}; please report the network and the package versions"
        )


def _difference(run: Callable[[Tensor], Tensor], model: Trained) -> float:
    """The largest over BATCHES; NaN where one is."""
    found = [_relative_error(run, model.network, _images(model, batch)) for batch in BATCHES]
    return max(found, key=lambda value: float("inf") if value != value else value)


def _relative_error(run: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor) -> float:
    """The largest, as a fraction of the network's largest absolute logit."""
    with torch.no_grad():
        right = network(images)
    return float((run(images) - right).abs().max() / right.abs().max())


def _images(model: Trained, batch: int) -> Tensor:
    """[B C *patch], standard normal as nnU-Net's preprocessed images nearly are."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, model.channels, *model.patch, generator=generator)


def _save_pt2(program: ExportedProgram, path: Path) -> None:
    # given a path, PyTorch would put its random name into the file; given an open file, it ends the
    # process where the disk is full
    buffer = BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def _read_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def _require_one_file(program: ExportedProgram) -> None:
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > ONE_FILE:
        raise ExportError(
            f"{weights / 2**30:.1f} GiB of weights do not fit into one ONNX file: --formats pt2"
        )


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    _require_one_file(program)
    onnx_program = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    if onnx_program is None:
        raise ExportError("PyTorch returned no ONNX program: leave onnx out of --formats")
    onnx_program.save(path, external_data=False)


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run
