"""What a pretraining step asks of a GPU, counted without one: kernels, casts, copies, bytes,
multiplications.

    python -m nnssl.bench.operations [--methods smit simmim:visible_only=true] [--preset smit]
                                     [--crop 96 96 96]

A step of the engine's own `Run` in bf16 on PyTorch's meta device (`nnssl.bench.lent`): views,
losses, backward, clipping, optimiser, running means, teacher. An operation that gives no view is
counted as one kernel, as are the Triton kernels, of window attention and of the residual stream; a
call for a whole list of tensors (_foreach, the fused optimiser) as one, although a GPU may make a
few launches of it. What waits for the device fails.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate
from torch.utils.flop_counter import flop_registry

from nnssl.bench import markdown
from nnssl.bench.command_line import parser_of
from nnssl.bench.lent import META, Kernel, lent
from nnssl.bench.methods import add_methods, parse_variant
from nnssl.bench.steps import sample
from nnssl.encoder.attention import fused
from nnssl.encoder.config import PATCH, SwinConfig
from nnssl.encoder.partition import Mask, WindowPartition
from nnssl.encoder.presets import PRESETS, preset
from nnssl.encoder.swin import Swin
from nnssl.encoder.windows import stage_windows
from nnssl.train.run import Run, RunConfig
from nnssl.types import Shape

if TYPE_CHECKING:
    from torch._ops import OpOverload

# neither views by their schema nor work
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach",
        "_unsafe_view", "lift_fresh", "set_", "resize_"}  # fmt: skip
COPIES = ("_to_copy", "_foreach_copy_", "copy_")  # which may cast


class Count(TorchDispatchMode):
    """`kernels` by name, `views`, `casts`, `copies` from the CPU, `bytes` read and written, and
    `flops` of matrix products, convolutions and window attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.views = self.casts = self.copies = self.bytes = self.flops = 0

    def __enter__(self) -> Count:
        self._before, Kernel.note = Kernel.note, staticmethod(self._record)
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        Kernel.note = staticmethod(self._before)
        super().__exit__(kind, error, trace)

    @property
    def total(self) -> int:
        return self.kernels.total()

    def __torch_dispatch__(
        self, function: OpOverload, types: Sequence, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = _tensors((args, kwargs))
        tensors = (*given, *_tensors(result))
        if any(x.is_meta for x in tensors):
            self._count(function, given, tensors)
            if count := flop_registry.get(function.overloadpacket):
                self.flops += count(*args, **kwargs, out_val=result)
        return result

    def _count(
        self, function: OpOverload, given: list[Tensor], tensors: tuple[Tensor, ...]
    ) -> None:
        name = function.overloadpacket.__name__
        if function.is_view or name in FREE:
            self.views += 1
        elif not all(x.is_meta or x.ndim == 0 for x in given):
            self.copies += 1
        else:
            self._record(name, tensors)
            self.casts += name in COPIES and len({x.dtype for x in tensors}) > 1

    def _record(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        self.kernels[name] += 1
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        if name.startswith("window attention"):
            products = 5 if "backward" in name else 2
            self.flops += products * _flops_of_product(tensors[0])

    def without(self, part: Count) -> Count:
        """What is left of this count when a part of it is taken away."""
        rest = Count()
        rest.kernels = self.kernels - part.kernels
        for field in ("views", "casts", "copies", "bytes", "flops"):
            setattr(rest, field, getattr(self, field) - getattr(part, field))
        return rest


def _flops_of_product(qkv: Tensor) -> int:
    """FLOPs of n x n by d, or n x d by n, in all windows and heads of [W n 3 heads d]."""
    windows, n, _, heads, d = qkv.shape
    return 2 * windows * heads * n * n * d


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def counted(name: str, config: SwinConfig, crop: Shape, batch_size: int) -> dict[str, Count]:
    """The counts of "views", "gradients" and "update", of a method as `parse_variant` names it."""
    with lent():
        torch.manual_seed(0)
        run = _meta_run(name, config, batch_size)
        batch = _batch(run.method.region(crop), batch_size)
        views, gradients, update = Count(), Count(), Count()
        run.gradients([batch])  # the first step makes what is made once
        run.update()
        with gradients:
            run.gradients([batch])
        with update:
            run.update()
        with views:
            run.prepare_views(batch)
    return {"views": views, "gradients": gradients.without(views), "update": update}


def _meta_run(name: str, config: SwinConfig, batch_size: int) -> Run:
    kind, chosen = parse_variant(name)
    method = kind(Swin(config, maskable=True), chosen)
    return Run(method, [], RunConfig(10, batch_size, bf16=True), Path(), {"method": name}, META)


def _batch(region: Shape, size: int) -> dict:
    """Crops of one scan."""
    crop = torch.randn(1, *region)
    parcels = torch.zeros(region, dtype=torch.long)
    shared = {**sample(crop, 0), "parcels": parcels}
    return default_collate([{**shared, "index": number} for number in range(size)])


# -- the first stage's attention -------------------------------------------------------------------


def copied_masks(qkv: Tensor, bias: Tensor, mask: Mask | None) -> Tensor:
    """Attention as it was before there was a kernel: PyTorch's, with a mask for every window."""
    if mask is not None:
        bias = _repeated(bias, mask, len(qkv))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


def _repeated(bias: Tensor, mask: Mask, windows: int) -> Tensor:
    """The bias of every window, with its mask."""
    patterns = mask.patterns[mask.which][:, None]
    return (bias + patterns).repeat(windows // len(mask.which), 1, 1, 1)


WAYS: dict[str, Callable] = {
    "PyTorch's, a mask for every window (before)": copied_masks,
    "PyTorch's, a call for every mask": fused.attention,
    "the Triton kernel": lambda qkv, bias, mask: Kernel.apply(qkv, bias),
}


def attention_bytes(config: SwinConfig, crop: Shape, views: int) -> dict[str, int]:
    """Bytes read and written by the attention of stage 1, from q, k, v to its output and back."""
    grid = tuple(size // PATCH for size in crop)
    windows = stage_windows(grid, config.window, config.windows, META, config.axes)
    in_turn = islice(cycle([windows.plain, windows.shifted]), config.depths[0])
    partitions, found = list(in_turn), {}
    for name, attention in WAYS.items():
        with lent(), Count() as count:
            for partition in partitions:
                _run_attention(attention, config, partition, views)
        found[name] = count.bytes
    return found


def _run_attention(
    attention: Callable, config: SwinConfig, partition: WindowPartition, views: int
) -> None:
    """Forward and backward."""
    qkv, bias = _attention_inputs(config, partition, views)
    out = attention(qkv, bias, partition.mask)
    out.backward(torch.empty_like(out))


def _attention_inputs(
    config: SwinConfig, partition: WindowPartition, views: int
) -> tuple[Tensor, Tensor]:
    """qkv [W n 3 heads d] of so many views, and the bias [heads n n], on the meta device."""
    n, heads = config.window**config.spatial_dims, config.heads[0]
    windows = views * _slots(partition) // n
    shape = (windows, n, 3, heads, config.embed_dim // heads)
    qkv = torch.empty(shape, dtype=torch.bfloat16, device=META, requires_grad=True)
    bias = torch.empty(heads, n, n, device=META, requires_grad=True)
    return qkv, bias


def _slots(partition: WindowPartition) -> int:
    """Tokens of all windows, filled ones among them."""
    filled = partition.token_of_slot
    return len(partition.tokens if filled is None else filled)


# -- the table -------------------------------------------------------------------------------------


COLUMNS = ("method", "kernels", "of views", "of losses and gradients", "of the update", "casts",
           "views", "copies to the GPU", "waits", "GB moved", "TFLOP")  # fmt: skip


def counts_table(rows: dict[str, dict[str, Count]]) -> str:
    """Markdown: a row per method."""
    return markdown.pipe_table(
        COLUMNS, [_counts_row(name, [*parts.values()]) for name, parts in rows.items()]
    )


def _counts_row(name: str, parts: list[Count]) -> list[str | int]:
    kernels = [part.total for part in parts]
    others = [_sum(parts, field) for field in ("casts", "views", "copies")]
    waits = 0  # what waits fails
    last = [f"{_sum(parts, 'bytes') / 1e9:.1f}", f"{_sum(parts, 'flops') / 1e12:.2f}"]
    return [name, sum(kernels), *kernels, *others, waits, *last]


def _sum(parts: list[Count], field: str) -> int:
    return sum(getattr(part, field) for part in parts)


def parse_count_options(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    add_methods(parser, ["smit", "simmim"])
    parser.add_argument("--preset", choices=PRESETS, default="smit")
    parser.add_argument("--crop", type=int, nargs="+", default=[96, 96, 96], help="voxels")
    parser.add_argument("--batch-size", type=int, default=8, help="scans per step")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="list the N most frequent")
    return parser.parse_args(argv)


def most_frequent(rows: dict[str, dict[str, Count]], most: int) -> Iterator[str]:
    """A line per method and part of its step: the `most` frequent kernels."""
    for name, parts in rows.items():
        for part, count in parts.items():
            kernels = (f"{n} {kernel}" for kernel, n in count.kernels.most_common(most))
            yield f"{name}, {part}: {', '.join(kernels)}"


def main(argv: list[str] | None = None) -> None:
    args = parse_count_options(argv)
    crop, config = tuple(args.crop), preset(args.preset, len(args.crop))
    rows = {name: counted(name, config, crop, args.batch_size) for name in args.methods}
    print(f"preset {args.preset}, {'x'.join(map(str, crop))}, {args.batch_size} scans per step\n")
    print(counts_table(rows))
    for line in most_frequent(rows, args.most) if args.most else ():
        print(f"\n{line}")
    _print_attention(config, crop, 2 * args.batch_size)


def _print_attention(config: SwinConfig, crop: Shape, views: int) -> None:
    print(f"\nattention of stage 1, {views} views, forward and backward:")
    for way, moved in attention_bytes(config, crop, views).items():
        print(f"  {way}: {moved / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
