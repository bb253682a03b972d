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

from nnssl.bench import finetuning, markdown, steps, throughput
from nnssl.bench.correctness import correctness
from nnssl.bench.sizes import TINY, BenchSizes
from nnssl.encoder.presets import PRESETS, preset
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS
from nnssl.network.decoders import DECODERS
from nnssl.train.peak import operations, peak_of
from nnssl.types import Shape

Part = tuple[str, Callable[[float], dict]]
COLUMNS = {  # of the table: field, heading, format
    "part": ("", "{}"),
    "scans": ("scans", "{}"),
    "ms": ("ms per step", "{:.1f}"),
    "scans_per_second": ("scans/s", "{:.1f}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "waits": ("waits", "{}"),
    "idle": ("GPU idle", "{:.0%}"),
    "tflops": ("TFLOP/s", "{:.1f}"),
    "of_peak": ("of peak", "{:.1%}"),
    "first_s": ("first step s", "{:.1f}"),
}


# -- how fast --------------------------------------------------------------------------------------


def pretraining(name: str, sizes: BenchSizes, device: torch.device, seconds: float) -> dict:
    """A step of method `name` through the engine's own `Run`, on noise; fewer scans where the
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
    name: str, sizes: BenchSizes, scans: int, device: torch.device
) -> Callable[[], None]:
    torch.manual_seed(0)
    config = METHODS[name].Config.parse(_known_settings(name, sizes))
    encoder = Swin(replace(sizes.encoder, drop_path=config.drop_path), maskable=True)
    method = METHODS[name](encoder, config)
    region = method.region(sizes.crop)
    samples = [_noise(region, number) for number in range(scans)]
    return steps.step_of(method, name, samples, device)


def _known_settings(name: str, sizes: BenchSizes) -> list[str]:
    """Those of `sizes.settings` that the method has."""
    fields = METHODS[name].Config.__dataclass_fields__
    return [setting for setting in sizes.settings if setting.partition("=")[0] in fields]


def _noise(region: Shape, number: int) -> dict:
    crop = torch.randn(1, *region)
    return {**steps.sample(crop, number), "parcels": torch.randint(2, region)}


def tuning(
    build: Callable[[], torch.nn.Module],
    ours: bool,
    sizes: BenchSizes,
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


RIVALS = {
    "nnU-Net PlainConvUNet": finetuning.nnunet_network,
    "nnU-Net ResEnc L": finetuning.nnunet_residual,
    "MONAI SwinUNETR": finetuning.monai_network,
}


def parts(sizes: BenchSizes, device: torch.device) -> Iterator[Part]:
    """Name and call of every part, what matters most first; a call takes the seconds that it may
    last.
    """
    yield "correctness", lambda seconds: correctness(sizes, device)
    for name in dict.fromkeys(("smit", "simmim", *METHODS)):
        yield f"pretraining, {name}", partial(pretraining, name, sizes, device)
    config = replace(sizes.encoder, drop_path=0.0)
    for name in DECODERS:
        build = partial(finetuning.our_network, config, name, True)
        yield f"fine-tuning, {name}", partial(tuning, build, True, sizes, device)
    for name, rival in RIVALS.items():
        yield f"fine-tuning, {name}", partial(tuning, partial(rival, config), False, sizes, device)


def guarded(call: Callable[[float], dict], seconds: float) -> dict:
    """What `call` found, or why it did not; a rival that is not installed is no fault."""
    began = time.perf_counter()
    try:
        found = call(seconds)
    except ModuleNotFoundError as error:
        found = {"left_out": f"{error.name} is not installed"}
    except Exception as error:  # one part's failure must not lose the rest
        found = _failure(error)
    return {**found, "took_s": time.perf_counter() - began}


def _failure(error: Exception) -> dict:
    what = f"{type(error).__name__}: {error}"
    return {"failed": what[:500], "trace": traceback.format_exc()[-2000:]}


def machine(sizes: BenchSizes, device: torch.device) -> dict:
    name, memory = "CPU", None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
    return {
        "device": name,
        "memory_gib": memory,
        "peak_tflops": peak_of(name),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "preset": sizes.preset,
        "crop": sizes.crop,
    }


def table(result: dict) -> str:
    """Markdown: one line of what it is, one row per part that was timed, one line per other."""
    timed = {name: found for name, found in result["parts"].items() if "ms" in found}
    others = {name: found for name, found in result["parts"].items() if "ms" not in found}
    headings = [heading for heading, _ in COLUMNS.values()]
    rows = (_cells({"part": name, **found}) for name, found in timed.items())
    notes = (_note(name, found) for name, found in others.items())
    lines = [_about(result["machine"]), "", markdown.table(headings, rows), "", *notes]
    return "\n".join(lines) + "\n"


def _about(machine: dict) -> str:
    crop = "x".join(map(str, machine["crop"]))
    return f"{machine['device']}, torch {machine['torch']}, preset {machine['preset']}, {crop}"


def _cells(row: dict) -> list[str]:
    """One per column; empty where the value is not known."""
    return [
        "" if row.get(field) is None else form.format(row[field])
        for field, (_, form) in COLUMNS.items()
    ]


def _note(name: str, found: dict) -> str:
    values = {key: value for key, value in found.items() if key not in ("trace", "took_s")}
    figures = (
        f"{key} {value:.1e}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
    return f"{name}: {', '.join(figures)}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Exits where they ask for a GPU that is not there."""
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
    return args


def sizes_of(args: argparse.Namespace) -> BenchSizes:
    if args.quick:
        return TINY
    crop = tuple(args.crop)
    return BenchSizes(args.preset, preset(args.preset), crop, crop, args.batch_size)


def run_parts(
    chosen: list[Part], minutes: float, quick: bool, finished: Callable[[str, dict], None]
) -> None:
    """Every part in its fraction of the time that is left; `finished` takes name and result."""
    end = time.perf_counter() + 60 * minutes
    for number, (name, call) in enumerate(chosen):
        left = end - time.perf_counter()
        if left > 0:
            found = guarded(call, 0.0 if quick else left / (len(chosen) - number))
        else:
            found = {"left_out": "no time left; --minutes gives more"}
        finished(name, found)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    sizes = sizes_of(args)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    folder = Path(os.environ.get("OUT") or ".")
    folder.mkdir(parents=True, exist_ok=True)
    result: dict = {"machine": machine(sizes, device), "parts": {}}

    def finished(name: str, found: dict) -> None:
        result["parts"][name] = found
        outcome = found.get("failed") or found.get("left_out") or f"{found['took_s']:.0f} s"
        print(f"{name}: {outcome}", flush=True)
        (folder / "gpu.json").write_text(json.dumps(result, indent=1))
        (folder / "gpu.md").write_text(table(result))
        if device.type == "cuda":
            torch.cuda.empty_cache()

    chosen = [(name, call) for name, call in parts(sizes, device) if args.only in name]
    run_parts(chosen, args.minutes, args.quick, finished)
    print("\n" + table(result))


if __name__ == "__main__":
    main()
