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
from collections.abc import Callable, Sequence
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

from nnssl.bench.lent import META, Kernel, lent
from nnssl.bench.methods import named
from nnssl.encoder.attention import fused
from nnssl.encoder.presets import PRESETS, preset
from nnssl.encoder.swin import PATCH, Swin, SwinConfig
from nnssl.encoder.windows import Mask, stage_windows
from nnssl.train.run import Run, RunConfig
from nnssl.types import Shape

if TYPE_CHECKING:
    from torch._ops import OpOverload

# neither views by their schema nor work
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach",
        "_unsafe_view", "lift_fresh", "set_", "resize_"}  # fmt: skip


class Count(TorchDispatchMode):
    """`kernels` by name, `views`, `casts`, `copies` from the CPU, `bytes` read and written, and
    `flops` of matrix products, convolutions and window attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.views = self.casts = self.copies = self.bytes = self.flops = 0

    def __enter__(self) -> Count:
        self._before, Kernel.note = Kernel.note, staticmethod(self._note)
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
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not any(x.is_meta for x in (*given, *made)):
            return result
        name = function.overloadpacket.__name__
        if function.is_view or name in FREE:
            self.views += 1
        elif not all(x.is_meta or x.ndim == 0 for x in given):
            self.copies += 1
        else:
            self._note(name, (*given, *made))
            if count := flop_registry.get(function.overloadpacket):
                self.flops += count(*args, **kwargs, out_val=result)
            kinds = {x.dtype for x in (*given, *made)}
            self.casts += name in ("_to_copy", "_foreach_copy_", "copy_") and len(kinds) > 1
        return result

    def _note(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        self.kernels[name] += 1
        self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        if name.startswith("window attention"):
            windows, n, _, heads, d = tensors[0].shape
            products = 5 if "backward" in name else 2  # of n x n by d, or n x d by n
            self.flops += products * 2 * windows * heads * n * n * d


def counted(name: str, config: SwinConfig, crop: Shape, batch_size: int) -> dict[str, Count]:
    """Of each part of a step of `nnssl.bench.methods.named`: "views", "gradients", "update"."""
    with lent():
        torch.manual_seed(0)
        kind, chosen = named(name)
        method = kind(Swin(config, maskable=True), chosen)
        region = method.region(crop)
        sample = {
            "crop": torch.randn(1, *region),
            "scan": 0,
            "start": torch.zeros(len(region), dtype=torch.long),
            "size": torch.tensor(region),
            "parcels": torch.zeros(region, dtype=torch.long),
        }
        batch = default_collate([{**sample, "index": i} for i in range(batch_size)])
        run = Run(method, [], RunConfig(10, batch_size, bf16=True), Path(), {"method": name}, META)
        for _ in range(2):  # the first one makes what is made once
            parts = {part: Count() for part in ("views", "gradients", "update")}
            with parts["gradients"]:
                run.gradients([batch])
            with parts["update"]:
                run.update()
        with parts["views"]:
            run.prepare_views(batch)
        whole, views = parts["gradients"], parts["views"]
        whole.kernels = whole.kernels - views.kernels
        for field in ("views", "casts", "copies", "bytes", "flops"):
            setattr(whole, field, getattr(whole, field) - getattr(views, field))
    return parts


# -- the first stage's attention -------------------------------------------------------------------


def copied_masks(qkv: Tensor, bias: Tensor, mask: Mask | None) -> Tensor:
    """Attention as it was before there was a kernel: PyTorch's, with a mask for every window."""
    if mask is not None:
        patterns = mask.patterns[mask.which][:, None]
        bias = (bias + patterns).repeat(len(qkv) // len(mask.which), 1, 1, 1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    return out.transpose(1, 2).flatten(2)


WAYS: dict[str, Callable] = {
    "PyTorch's, a mask for every window (before)": copied_masks,
    "PyTorch's, a call for every mask": fused.attention,
    "the Triton kernel": lambda qkv, bias, mask: Kernel.apply(qkv, bias),
}


def attention_bytes(config: SwinConfig, crop: Shape, views: int) -> dict[str, int]:
    """Bytes read and written by the attention of stage 1, from q, k, v to its output and back."""
    grid = tuple(size // PATCH for size in crop)
    windows = stage_windows(grid, config.window, config.windows, META, config.axes)
    found = {}
    for name, way in WAYS.items():
        with lent(), Count() as count:
            for number in range(config.depths[0]):
                cut = windows.shifted if number % 2 else windows.plain
                n = config.window ** len(crop)
                slots = len(cut.tokens) if cut.slots is None else len(cut.slots)
                heads, d = config.heads[0], config.embed_dim // config.heads[0]
                shape = (views * slots // n, n, 3, heads, d)
                qkv = torch.empty(shape, dtype=torch.bfloat16, device=META, requires_grad=True)
                bias = torch.empty(heads, n, n, device=META, requires_grad=True)
                out = way(qkv, bias, cut.mask)
                out.backward(torch.empty_like(out))
        found[name] = count.bytes
    return found


# -- the table -------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, Count]]) -> str:
    """Markdown: a row per method."""
    head = ("method", "kernels", "of views", "of losses and gradients", "of the update", "casts",
            "views", "copies to the GPU", "waits", "GB moved", "TFLOP")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, parts in rows.items():
        numbers = [sum(part.total for part in parts.values())]
        numbers += [part.total for part in parts.values()]
        numbers += [
            sum(getattr(part, f) for part in parts.values()) for f in ("casts", "views", "copies")
        ]
        moved, products = (sum(getattr(p, f) for p in parts.values()) for f in ("bytes", "flops"))
        cells = [*map(str, [*numbers, 0]), f"{moved / 1e9:.1f}", f"{products / 1e12:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        type=lambda variant: named(variant) and variant,
        default=["smit", "simmim"],
        metavar="NAME[:FIELD=VALUE,...]",
    )
    parser.add_argument("--preset", choices=PRESETS, default="smit")
    parser.add_argument("--crop", type=int, nargs="+", default=[96, 96, 96], help="voxels")
    parser.add_argument("--batch-size", type=int, default=8, help="scans per step")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="list the N most frequent")
    args = parser.parse_args(argv)
    crop, config = tuple(args.crop), preset(args.preset, len(args.crop))
    rows = {name: counted(name, config, crop, args.batch_size) for name in args.methods}
    print(f"preset {args.preset}, {'x'.join(map(str, crop))}, {args.batch_size} scans per step\n")
    print(table(rows))
    for name, parts in rows.items():
        for part, count in parts.items() if args.most else ():
            most = ", ".join(f"{n} {kernel}" for kernel, n in count.kernels.most_common(args.most))
            print(f"\n{name}, {part}: {most}")
    print(f"\nattention of stage 1, {2 * args.batch_size} views, forward and backward:")
    for way, moved in attention_bytes(config, crop, 2 * args.batch_size).items():
        print(f"  {way}: {moved / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
