"""`nnssl_convert`: a checkpoint of ours from third-party weights, all of them accounted for or
nothing written.

    open -> find the encoder -> name its tensors as ours -> undo each difference -> compare with our
    encoder -> write

What our encoder has to compute in another way than it would by itself is in its `SwinConfig`;
everything else is pushed into the weights (`adapt`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import nnssl
from nnssl import address, checkpoint, files
from nnssl.checkpoint.describe import by
from nnssl.convert import adapt, adaptation, layouts, sources
from nnssl.convert.inflation import in_3d, is_flat
from nnssl.convert.layouts import LayoutMatch
from nnssl.convert.opening import (
    FileTensors,
    ForeignError,
    encoder_in,
    is_ours,
    opened,
    require_usual_indices,
    tensors_in,
)
from nnssl.convert.request import ConvertRequest
from nnssl.convert.sources import Source
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.swin import Swin
from nnssl.hu import HUPolicy

MERGE = (
    "layers4.0.downsample.norm.weight",
    "layers4.0.downsample.norm.bias",
    "layers4.0.downsample.reduction.weight",
)


@dataclass(frozen=True)
class Converted:
    """An encoder with the weights, and the account of what became of the file's tensors."""

    encoder: Swin
    source: Source
    found: LayoutMatch
    loaded: int  # tensors of the encoder that come from the file
    adapted: tuple[str, ...]
    left_out: dict[str, int]  # reason: tensors


def convert(request: ConvertRequest) -> str:
    """Write the checkpoint, or with `hub` its folder, and give the report.

    A checkpoint of ours is written again in the other form: as a folder, or out of one.
    Raises FileNotFoundError, AddressError, CheckpointError (damaged, or more than tensors),
    ForeignError; then nothing was written.
    """
    _check_output(request)
    request = replace(request, file=address.local(request.file))
    content = _converted_content(request)
    if request.half:
        content = checkpoint.halved(content)
    if request.hub:
        checkpoint.publish(request.output, content, request.licence, request.about)
    else:
        checkpoint.write(request.output, content)
    return _report(request)


def _check_output(request: ConvertRequest) -> None:
    if request.output.exists():
        raise ForeignError(f"{request.output} already exists; choose another -o, or remove it")
    if (request.licence or request.about) and not request.hub:
        raise ForeignError("--licence and --about are for the card of a folder: add --hub")
    if request.hu and request.no_hu:
        raise ForeignError("--hu and --no-hu contradict each other; leave out one of them")
    _require_finite("--hu", request.hu)
    _require_finite("--spacing", request.spacing)


def _require_finite(flag: str, numbers: tuple[float, ...] | None) -> None:
    if not all(map(math.isfinite, numbers or ())):
        raise ForeignError(f"{flag} takes finite numbers; got {by(numbers or ())}")


def _report(request: ConvertRequest) -> str:
    """What was written, and how to use it."""
    description = checkpoint.describe(checkpoint.load(request.output))
    output = files.quoted(request.output)
    if not request.hub:
        return f"{description}\nUse it: nnssl_plan -d DATASET -c {output}"
    return (
        f"{description}\n"
        "Read README.md, and config.json, which names your collection, before others do:\n"
        f"  hf upload OWNER/REPO {output}\nUse it: nnssl_plan -d DATASET -c hf://OWNER/REPO"
    )


def _converted_content(request: ConvertRequest) -> dict:
    """The content of the checkpoint of what `request` names, a file on this machine."""
    file = Path(request.file)
    content = opened(file)
    if is_ours(content):
        return _native_content(request)
    done = encoder_from(tensors_in(content, file), request)
    return checkpoint.pack(done.encoder, _converted_header(request, done), [done.source.citation])


def _native_content(request: ConvertRequest) -> dict:
    """The content of a checkpoint of ours, without training state."""
    if request.dims == 3 and is_flat(loaded := checkpoint.load(request.file)):
        _require_undescribed(replace(request, dims=None))
        return in_3d(loaded)
    _require_undescribed(request)
    _require_another_form(request)
    content = checkpoint.read(request.file)
    return {key: value for key, value in content.items() if key in checkpoint.KEYS}


def _require_undescribed(request: ConvertRequest) -> None:
    """Raises ForeignError where a checkpoint of ours would be described."""
    if given := request.about_others:
        raise ForeignError(
            f"{request.file} is a checkpoint of this package, which already records this: leave "
            f"out --{' --'.join(name.replace('_', '-') for name in given)}"
        )


def _require_another_form(request: ConvertRequest) -> None:
    """Raises ForeignError where a checkpoint of ours would be written as it is."""
    same = request.output.suffix == Path(request.file).suffix and not request.half
    if same and not request.hub:
        raise ForeignError(
            f"{request.file} is a checkpoint of this package already; use it: nnssl_plan -d "
            f"DATASET -c {files.quoted(request.file)}, write it as a folder for Hugging Face "
            "(--hub -o FOLDER), or at half the size (--half)"
        )


def encoder_from(file_tensors: FileTensors, request: ConvertRequest) -> Converted:
    """Raises ForeignError when a tensor of the encoder is missing, unexpected or of another
    shape.
    """
    tensors = file_tensors.named
    found = encoder_in(Path(request.file), list(tensors), request.prefix)
    source = _source(found, list(tensors), request)
    weights, left_out = _ours_by_name(tensors, found)
    left_out |= file_tensors.left_out
    encoder, weights, adapted = _adapted(weights, source, request)
    new = _new_merge(weights, source, encoder)
    if new:
        adapted += (
            "the last merge is missing in the file and newly initialised "
            "(truncated normal, seed 0)",
        )
    _fill(encoder, weights | new, request)
    return Converted(encoder, source, found, len(weights), adapted, left_out)


def _fill(encoder: Swin, weights: adapt.Weights, request: ConvertRequest) -> None:
    """Raises ForeignError where they are not just the encoder's."""
    if problems := checkpoint.differences(weights, encoder.state_dict()):
        raise ForeignError(
            f"{request.file} does not match the encoder it resembles; nothing was written:\n  "
            f"{problems}"
        )
    encoder.load_state_dict(weights)


def _adapted(
    weights: adapt.Weights, source: Source, request: ConvertRequest
) -> tuple[Swin, adapt.Weights, tuple[str, ...]]:
    """Our encoder, still without the weights, these, and what was done to them, in words."""
    try:
        weights, config, adapted = adaptation.adapted(weights, source, request)
        return _built(config), weights, adapted
    except ValueError as error:
        raise ForeignError(f"the encoder in {request.file} cannot be used: {error}") from error


def _new_merge(weights: adapt.Weights, source: Source, encoder: Swin) -> adapt.Weights:
    """Our encoder's last merge where the file has none, as the 2D networks of ImageNet have not."""
    if source.name != "imagenet" or any(name in weights for name in MERGE):
        return {}
    return {name: tensor for name, tensor in encoder.state_dict().items() if name in MERGE}


def _source(found: LayoutMatch, names: list[str], request: ConvertRequest) -> Source:
    """The source with what the request says otherwise."""
    layout = found.layout.name
    if request.source:
        source = sources.source_by_name(request.source, layout)
    else:
        source = sources.identify_source(layout, names)
    source = replace(_merged_as_said(source, request), axes=request.axes or source.axes)
    if source.merging is None:
        raise ForeignError(
            "--merging is unknown: MONAI 1.5 changed which tokens a merge joins, and the file "
            "does not record the version. Give --merging legacy (before 1.5), --merging all "
            '(1.5 and later), or --merging v2 (downsample="mergingv2" of any version)'
        )
    return source


def _merged_as_said(source: Source, request: ConvertRequest) -> Source:
    """With the merging of the request: "v2" is "all" with the corners in another order."""
    if request.merging == "v2":
        return replace(source, merging="all", chunks="v2")
    return replace(source, merging=request.merging or source.merging)


def _ours_by_name(
    tensors: dict[str, Tensor], found: LayoutMatch
) -> tuple[adapt.Weights, dict[str, int]]:
    """The encoder's tensors in our names, in single precision, and how many were left out for which
    reason.
    """
    weights, names, buffers, left_out = {}, {}, {}, Counter()
    for name, tensor in tensors.items():
        ours = found.our_name(name)
        if ours is None:
            left_out["outside of the encoder"] += 1
        elif reason := layouts.reason_to_leave_out(ours):
            buffers[ours] = tensor
            left_out[reason] += 1
        else:
            weights[ours] = tensor
            names[ours] = name
    if why := checkpoint.why_inflated(weights.values()):
        raise ForeignError(f"the encoder's tensors {why}; nothing was written")
    weights = {ours: _readable(names[ours], tensor) for ours, tensor in weights.items()}
    require_usual_indices(weights, buffers)
    return weights, dict(left_out)


def _readable(name: str, tensor: Tensor) -> Tensor:
    """float32. Raises ForeignError for what are no weights."""
    if why := checkpoint.why_no_weights(tensor):
        raise ForeignError(f"{name} {why}; nothing was written")
    return tensor.float()


def _built(config: SwinConfig) -> Swin:
    """Our encoder; what the file may lack is the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Swin(config)


def _hu(request: ConvertRequest, source: Source) -> HUPolicy | None:
    if request.hu:
        return _named_hu(request.hu, source)
    if source.range is not None and not request.no_hu:
        return source.policy(source.range)
    if request.no_hu or source.plain:
        return None
    raise ForeignError(
        f"unknown HU range: the weights of {source.name} ({source.title}) do not record it. Give "
        "the HU that were mapped to 0 and 1 with --hu LOW HIGH, or --no-hu to keep nnU-Net's "
        "normalisation"
    )


def _named_hu(hu: tuple[float, ...], source: Source) -> HUPolicy:
    """The policy that --hu names."""
    if len(hu) == 4:
        return HUPolicy(*hu)
    if len(hu) == 2:
        return source.policy(hu)
    raise ForeignError(f"--hu takes LOW HIGH (mapped to 0 and 1), or LOW HIGH MEAN STD; got {hu}")


def _converted_header(request: ConvertRequest, done: Converted) -> dict:
    source = done.source
    return {
        "method": source.name,
        "preset": f"as in the file ({done.found.layout.name})",
        "crop": list(request.crop or source.crop_in(done.encoder.config.spatial_dims)),
        "plan": _plan(request, source),
        "foreign": _account(request, done),
        "versions": {"nnssl": nnssl.__version__, "torch": torch.__version__},
        "created": time.strftime("%Y-%m-%d"),
    }


def _account(request: ConvertRequest, done: Converted) -> dict:
    """Which file it was, whose, and what became of its tensors."""
    return {
        "file": Path(request.file).name,
        "sha256": files.sha256(request.file),
        "title": done.source.title,
        "licence": done.source.licence,
        "layout": done.found.layout.name,
        "prefix": done.found.prefix,
        "loaded": done.loaded,
        "total": len(done.encoder.state_dict()),
        "adapted": list(done.adapted),
        "left_out": done.left_out,
    }


def _plan(request: ConvertRequest, source: Source) -> dict:
    """What is known of the pretraining, in place of a plan of ours."""
    hu, spacing = _hu(request, source), request.spacing or source.spacing
    return {
        "name": source.title,
        "fingerprint": None,
        "spacing": list(spacing) if spacing else None,
        "hu": hu.to_dict() if hu else None,
        "cases": None,
    }
