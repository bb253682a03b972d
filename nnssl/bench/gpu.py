"""One command that measures a GPU: is it right, how fast is it, does it wait, and how much of the
GPU does it use?

    python -m nnssl.bench.gpu [--minutes 10] [--preset smit] [--crop 96 96 96] [--batch-size 8]
    python -m nnssl.bench.gpu --device cpu --quick         a dry run of every part in seconds

Needs PyTorch, NumPy and this package; rivals are measured where they are installed. Writes gpu.md
and gpu.json after every part into $OUT, or the current folder, so that what stops it loses one part
at most.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import default_collate

from nnssl.bench import finetuning, throughput
from nnssl.bench.correctness import correctness
from nnssl.bench.sizes import TINY, Sizes
from nnssl.encoder.presets import PRESETS, preset
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS
from nnssl.network.decoders import DECODERS
from nnssl.train.peak import operations, peak_of
from nnssl.train.precision import half_precision
from nnssl.train.run import Run, RunConfig

COLUMNS = {  # of the table: field, heading, format
    "part": ("", "{}"),
    "scans": ("scans", "{}"),
    "ms": ("ms a step", "{:.1f}"),
    "scans_per_second": ("scans/s", "{:.1f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "waits": ("waits", "{}"),
    "idle": ("GPU idle", "{:.0%}"),
    "tflops": ("TFLOP/s", "{:.1f}"),
    "of_peak": ("of peak", "{:.1%}"),
    "first_s": ("first step s", "{:.1f}"),
}


# -- how fast --------------------------------------------------------------------------------------


def pretraining(name: str, sizes: Sizes, device: torch.device, seconds: float) -> dict:
    """A step of method `name` through the engine's own `Run`, on made scans; fewer scans where
    memory ends.
    """
    flops = operations(_pretraining_step(name, sizes, 2, device)) / 2
    return _fitting(
        lambda scans: _pretraining_step(name, sizes, scans, device),
        sizes.batch,
        device,
        seconds,
        flops,
    )


def _pretraining_step(
    name: str, sizes: Sizes, scans: int, device: torch.device
) -> Callable[[], None]:
    torch.manual_seed(0)
    fields = METHODS[name].Config.__dataclass_fields__
    config = METHODS[name].Config.parse(
        [s for s in sizes.settings if s.partition("=")[0] in fields]
    )
    encoder = Swin(replace(sizes.encoder, drop_path=config.drop_path), maskable=True)
    method = METHODS[name](encoder, config)
    region = method.region(sizes.crop)
    samples = [
        {
            "crop": torch.randn(1, *region),
            "index": i,
            "scan": i,
            "rejected": 0,
            "start": torch.zeros(len(region), dtype=torch.long),
            "size": torch.tensor(region),
            "parcels": torch.randint(2, region),
        }
        for i in range(scans)
    ]
    batch = default_collate(samples)
    if device.type == "cuda":
        batch = {key: value.pin_memory() for key, value in batch.items()}
    bf16 = half_precision(device) == torch.bfloat16
    run = Run(
        method, samples, RunConfig(10_000, scans, bf16=bf16), Path(), {"method": name}, device
    )

    def step() -> None:
        run.gradients([batch])
        run.update()

    return step


def tuning(
    build: Callable[[], torch.nn.Module],
    ours: bool,
    sizes: Sizes,
    device: torch.device,
    seconds: float,
) -> dict:
    """A fine-tuning step, not compiled, in bf16 on a GPU."""

    def step(patches: int) -> Callable[[], None]:
        torch.manual_seed(0)
        image = torch.randn(patches, 1, *sizes.patch, device=device)
        return finetuning.step(build().to(device), image, ours, compiled=False)

    flops = operations(step(1))
    return _fitting(step, sizes.patches, device, seconds, flops)


def _fitting(
    make: Callable[[int], Callable[[], None]],
    most: int,
    device: torch.device,
    seconds: float,
    flops: float,
) -> dict:
    """`throughput.measure` of the largest of most, most / 2, ... scans that the memory holds."""
    scans = most
    while True:
        try:
            return throughput.measure(make(scans), scans, device, seconds, flops * scans)
        except torch.cuda.OutOfMemoryError:
            if scans == 1:
                raise
            scans //= 2
        torch.cuda.empty_cache()


# -- all of it -------------------------------------------------------------------------------------


def parts(sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Callable[[float], dict]]]:
    """Name and call of every part, what matters most first; a call takes the seconds that it may
    last.
    """
    yield "correctness", lambda seconds: correctness(sizes, device)
    first = ("smit", "simmim")
    for name in (*first, *(name for name in METHODS if name not in first)):
        yield f"pretraining, {name}", partial(pretraining, name, sizes, device)
    config = replace(sizes.encoder, drop_path=0.0)
    for name in DECODERS:
        build = partial(finetuning.our_network, config, name, True)
        yield f"fine-tuning, {name}", partial(tuning, build, True, sizes, device)
    for name, rival in (
        ("nnU-Net PlainConvUNet", finetuning.nnunet_network),
        ("nnU-Net ResEnc L", finetuning.nnunet_residual),
        ("MONAI SwinUNETR", finetuning.monai_network),
    ):
        yield f"fine-tuning, {name}", partial(tuning, partial(rival, config), False, sizes, device)


def guarded(call: Callable[[float], dict], seconds: float) -> dict:
    """What `call` found, or why it did not; a rival that is not installed is no fault."""
    began = time.perf_counter()
    try:
        found = call(seconds)
    except ModuleNotFoundError as error:
        found = {"left_out": f"{error.name} is not installed"}
    except Exception as error:  # one part's failure must not lose the rest
        found = {
            "failed": f"{type(error).__name__}: {error}"[:500],
            "trace": traceback.format_exc()[-2000:],
        }
    return {**found, "took_s": time.perf_counter() - began}


def machine(sizes: Sizes, device: torch.device) -> dict:
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    return {
        "device": name,
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30
        if cuda
        else None,
        "peak_tflops": peak_of(name),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "preset": sizes.preset,
        "crop": sizes.crop,
    }


def table(result: dict) -> str:
    """Markdown: one line of what it is, one of the errors, one row a part."""
    about = result["machine"]
    lines = [
        f"{about['device']}, torch {about['torch']}, preset {about['preset']}, "
        f"{'x'.join(map(str, about['crop']))}\n",
        "| " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    notes = []
    for name, found in result["parts"].items():
        if "ms" in found:
            row = {"part": name, **found}
            cells = [
                form.format(row[f]) if row.get(f) is not None else ""
                for f, (_, form) in COLUMNS.items()
            ]
            lines.append("| " + " | ".join(cells) + " |")
        else:
            figures = {
                k: f"{v:.1e}" if isinstance(v, float) else v
                for k, v in found.items()
                if k not in ("trace", "took_s")
            }
            notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
    return "\n".join([*lines, "", *notes]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="no part begins later than this"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every part run?")
    parser.add_argument("--preset", choices=PRESETS, default="smit")
    parser.add_argument(
        "--crop", type=int, nargs=3, default=(96, 96, 96), help="voxels; of patches as well"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="scans per step; halved where the memory ends"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the parts whose names contain TEXT, as: smit"
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no NVIDIA GPU; a dry run without one is: --device cpu --quick")
    sizes = (
        TINY
        if args.quick
        else Sizes(
            args.preset,
            preset(args.preset),
            tuple(args.crop),
            tuple(args.crop),
            args.batch_size,
        )
    )
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    folder = Path(os.environ.get("OUT") or ".")
    folder.mkdir(parents=True, exist_ok=True)
    result: dict = {"machine": machine(sizes, device), "parts": {}}
    end = time.perf_counter() + 60 * args.minutes
    todo = [(name, call) for name, call in parts(sizes, device) if args.only in name]
    for number, (name, call) in enumerate(todo):
        left = end - time.perf_counter()
        fraction = 0.0 if args.quick else left / (len(todo) - number)
        found = (
            guarded(call, fraction)
            if left > 0
            else {"left_out": "no time left; --minutes gives more"}
        )
        result["parts"][name] = found
        print(
            f"{name}: {found.get('failed') or found.get('left_out') or f'''{found['took_s']:.0f} s'''}",
            flush=True,
        )
        (folder / "gpu.json").write_text(json.dumps(result, indent=1))
        (folder / "gpu.md").write_text(table(result))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print("\n" + table(result))


if __name__ == "__main__":
    main()
