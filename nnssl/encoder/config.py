"""The architecture of a Swin encoder as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import chain
from math import prod

from nnssl.types import Shape

PATCH = 2  # voxels per edge of a token
# what only published weights want otherwise
NATIVE = {"windows": "exact", "merging": "all", "axes": "zyx"}
STEPS = 5  # of the patch embedding and the four merges, each of which shortens the grid


def map_channels(embed_dim: int) -> tuple[int, ...]:
    """Channels of the encoder's five maps, at strides 2 to 32."""
    return tuple(embed_dim * 2**number for number in range(STEPS))


CHOICES = {
    "spatial_dims": (2, 3),
    "taps": ("stage", "merge"),
    "windows": ("exact", "monai", "smit"),
    "merging": ("all", "legacy"),
    "axes": ("zyx", "xyz"),
}


@dataclass(frozen=True)
class SwinConfig:
    """The architecture of a `Swin`, and all that is needed to rebuild it.

    taps:    "stage": maps 0-3 are the stages' outputs before merging, as in SMIT, map 4 the last
             merge's.
             "merge": map 0 is the patch embedding, maps 1-4 follow the merges, as in MONAI.
    windows: "exact": the bias of a pair of tokens is that of its true offset, and padding is not
             attended to.
             "monai": MONAI 1.6.1's clipped windows and attended padding, for weights that were
             trained so.
             "smit": SMIT's, which are never clipped, always shifted, and put together in another
             order than they were cut; for its published weights.
    merging: "all": a merge joins the 2^d tokens of a cell.
             "legacy": MONAI's before 1.5 (its PR 8285), which in 3D joins six of the eight, two of
             them twice.
    axes:    in which order the code that trained the weights counted the axes, "zyx" or "xyz". It
             only matters to windows "monai" and "smit" and to merging "legacy", which are not
             symmetric in the axes.
    steps:   by how much the patch embedding and the four merges shorten each axis, 1 or 2, as five
             tuples of `spatial_dims` numbers. (): 2 everywhere. 1 is for axes of wide spacing
             (documentation/encoder.md).
    convolutions: a residual convolution block before each stage, as in Swin UNETR v2.
    out_norms:    maps 0-3 pass a layer norm with parameters, as SMIT's; for taps "stage".
    """

    spatial_dims: int = 3
    in_channels: int = 1
    embed_dim: int = 48
    depths: tuple[int, ...] = (2, 2, 12, 2)
    heads: tuple[int, ...] = (4, 4, 8, 16)
    window: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_norm: bool = True
    drop_path: float = 0.0
    taps: str = "stage"
    windows: str = "exact"
    steps: tuple[Shape, ...] = ()
    merging: str = "all"
    axes: str = "zyx"
    convolutions: bool = False
    out_norms: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "steps", self._checked_steps())
        for name, allowed in CHOICES.items():
            _one_of(name, getattr(self, name), allowed)
        self._check_combinations()
        self._check_stages()
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.window < 2 or self.in_channels < 1 or not 0 <= self.drop_path < 1:
            raise ValueError(
                "a Swin needs window >= 2, in_channels >= 1 and 0 <= drop_path < 1, got "
                f"window={self.window}, in_channels={self.in_channels}, drop_path={self.drop_path}"
            )

    def _check_stages(self) -> None:
        if len(self.depths) != 4 or len(self.heads) != 4 or min(self.depths + self.heads) < 1:
            raise ValueError(
                "a Swin has 4 stages: depths and heads need 4 positive numbers each, got "
                f"depths={self.depths}, heads={self.heads}"
            )
        self._check_heads()

    def _check_heads(self) -> None:
        for stage, heads in enumerate(self.heads):
            if (width := self.embed_dim * 2**stage) % heads:
                raise ValueError(
                    f"stage {stage + 1} has {width} channels, which is not a multiple of its "
                    f"{heads} heads; choose heads[{stage}] among the divisors of {width}"
                )

    def _checked_steps(self) -> tuple[Shape, ...]:
        """`steps` as tuples; () for 2 everywhere, so that equal architectures are equal."""
        steps = tuple(tuple(step) for step in self.steps)
        fitting = len(steps) in (0, STEPS) and all(len(step) == self.spatial_dims for step in steps)
        values = set(chain.from_iterable(steps))
        if not fitting or values - {1, PATCH}:
            raise ValueError(
                f"steps are {STEPS} tuples of {self.spatial_dims} numbers, each 1 or {PATCH}, or "
                f"() for {PATCH} everywhere; got {self.steps}"
            )
        return steps if 1 in values else ()

    def step(self, number: int) -> Shape:
        """By how much the patch embedding (0) or a merge (1 to 4) shortens each axis."""
        return self.steps[number] if self.steps else (PATCH,) * self.spatial_dims

    def stride(self, number: int) -> Shape:
        """Voxels of a token along each axis, behind the step `number`."""
        steps = [self.step(before) for before in range(number + 1)]
        return tuple(map(prod, zip(*steps, strict=True)))

    def _check_combinations(self) -> None:
        if self.windows == "smit" and self.spatial_dims != 3:
            raise ValueError(
                'windows "smit" exist in 3D only, got spatial_dims=2; choose "exact" or "monai"'
            )
        if self.out_norms and self.taps != "stage":
            raise ValueError(f'out_norms need taps "stage", got {self.taps!r}')

    def to_dict(self) -> dict:
        """JSON-able."""
        return {key: _as_list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> SwinConfig:
        """The inverse of `to_dict`; a missing key takes its default, an unknown one raises
        ValueError.
        """
        _require_known_options(values, [field.name for field in fields(cls)])
        return cls(**values)


def _require_known_options(values: dict, known: list[str]) -> None:
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"unknown encoder option(s) {', '.join(unknown)}; known: {', '.join(known)}"
        )


def _as_list(value: object) -> object:
    return [_as_list(part) for part in value] if isinstance(value, tuple) else value


def _one_of(name: str, got: object, allowed: tuple) -> None:
    if got not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {got!r}")
