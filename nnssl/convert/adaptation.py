"""Each difference between third-party weights and our encoder undone in turn, or named in the
`SwinConfig`.
"""

from __future__ import annotations

from nnssl.convert import adapt
from nnssl.convert.layouts import STEM
from nnssl.convert.request import ConvertRequest
from nnssl.convert.sources import Source
from nnssl.encoder.config import SwinConfig
from nnssl.encoder.windows import corners


def adapted(
    weights: adapt.Weights, source: Source, request: ConvertRequest
) -> tuple[adapt.Weights, SwinConfig, tuple[str, ...]]:
    """The weights for our encoder, what it has to compute differently, and what was done, in
    words.
    """
    dims = adapt.dims_of(weights)
    if request.dims not in (None, dims, 3):
        raise ValueError("3D weights cannot be converted to 2D")
    is_legacy = source.merging == "legacy" and dims == 3
    is_inflated = request.dims == 3 and dims == 2
    work = _Adaptation(weights)
    work.run(source, request.rgb, is_legacy, is_inflated)
    semantics = _semantics(source, "exact" if is_inflated else source.windows, is_legacy)
    config = SwinConfig(**adapt.facts(work.weights), **semantics, drop_path=source.drop_path)
    return work.weights, config, tuple(work.done)


class _Adaptation:
    """Weights on their way to our encoder, and what was done to them, in words."""

    def __init__(self, weights: adapt.Weights) -> None:
        self.weights = weights
        self.done: list[str] = []

    def run(self, source: Source, keep_rgb: bool, is_legacy: bool, is_inflated: bool) -> None:
        self.adapt_patch()
        if not keep_rgb:
            self.adapt_channels()
        self.adapt_axes(source, is_legacy)
        if is_inflated:
            self.inflate()
        self.drop_idle_norms()

    def replace(self, weights: adapt.Weights, what: str) -> None:
        self.weights = weights
        self.done.append(what)

    def adapt_patch(self) -> None:
        if adapt.patch(self.weights) == 4:
            self.replace(
                adapt.halved_patch(self.weights),
                "patches of 4 x 4 pixels -> 2 x 2, as if every pixel were doubled",
            )

    def adapt_channels(self) -> None:
        if adapt.dims_of(self.weights) == 2 and self.weights[STEM].shape[1] == 3:
            self.replace(
                adapt.grey(self.weights),
                "red, green, blue -> one channel, as if all were equal",
            )

    def adapt_axes(self, source: Source, is_legacy: bool) -> None:
        """Axes (z, y, x), and merges in our order of the corners."""
        if source.axes == "xyz":
            self.replace(
                adapt.zyx_from_xyz(self.weights),
                "axes (x, y, z) -> (z, y, x): kernels, bias tables, merges",
            )
        if not is_legacy:
            self.reorder_merge(source)

    def reorder_merge(self, source: Source) -> None:
        dims = adapt.dims_of(self.weights)
        theirs, ours = _their_corners(source, dims), corners((2,) * dims)
        self.weights = adapt.reorder_merge(self.weights, theirs, ours)

    def inflate(self) -> None:
        self.replace(adapt.inflated(self.weights), "2D -> 3D, as if a volume were constant along z")

    def drop_idle_norms(self) -> None:
        kept = adapt.without_idle_norms(self.weights)
        if len(kept) < len(self.weights):
            self.replace(kept, "norms of the four maps: untrained and without effect, dropped")


def _their_corners(source: Source, dims: int) -> list[tuple[int, ...]]:
    """The corners that merging "all" joins in the source, by axes (z, y, x)."""
    theirs = adapt.CHUNKS[source.chunks] if dims == 3 else corners((2, 2))
    return [corner[::-1] for corner in theirs] if source.axes == "xyz" else theirs


def _semantics(source: Source, windows: str, is_legacy: bool) -> dict:
    """The fields of `SwinConfig` that say what our encoder has to compute differently."""
    semantics = {
        "windows": windows,
        "merging": "legacy" if is_legacy else "all",
        "taps": source.taps,
    }
    if is_legacy or windows != "exact":
        semantics["axes"] = source.axes
    return semantics
