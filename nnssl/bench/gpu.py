"""One command that measures a GPU: is it right, how fast is it, does it wait, and how much of the
GPU does it use?

    python -m nnssl.bench.gpu [--minutes 10] [--preset smit] [--crop 96 96 96] [--batch-size 8]
    python -m nnssl.bench.gpu --graph --set w_parcels=1 --only smit
    python -m nnssl.bench.gpu --device cpu --quick         a dry run of every part in seconds

Needs PyTorch, NumPy and this package; rivals are measured where they are installed. Writes gpu.md
and gpu.json after every part into $OUT, or the current folder, so that what stops it loses one part
at most.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from nnssl.bench import finetuning, steps, throughput
from nnssl.bench.command_line import parser_of
from nnssl.bench.correctness import correctness
from nnssl.bench.gpu_report import GPUReport
from nnssl.bench.sizes import TINY, BenchSizes
from nnssl.encoder.presets import PRESETS, preset
from nnssl.encoder.swin import Swin
from nnssl.methods import METHODS, Method
from nnssl.network.decoders import DECODERS
from nnssl.train.peak import operations, peak_of
from nnssl.types import Shape

Part = tuple[str, Callable[[float], dict]]


# -- how fast --------------------------------------------------------------------------------------


def pretraining(name: str, sizes: BenchSizes, device: torch.device, seconds: float) -> dict:
    """A step of method `name` through the engine's own `Run`, on noise; fewer scans where the
    memory ends.
    """
    flops = operations(_pretraining_step(name, replace(sizes, graph=False), 2, device)) / 2
    return _fitting(
        lambda scans: _pretraining_step(name, sizes, scans, device),
        sizes.batch,
        device,
        seconds,
        flops,
    )


def _pretraining_step(
    name: str, sizes: BenchSizes, scans: int, device: torch.device
) -> Callable[[], object]:
    torch.manual_seed(0)
    method = _pretraining_method(name, sizes)
    region = method.region(sizes.crop)
    samples = [_noise(region, number) for number in range(scans)]
    return steps.step_of(method, name, samples, device, sizes.graph)


def _pretraining_method(name: str, sizes: BenchSizes) -> Method:
    config = METHODS[name].Config.parse(_known_settings(name, sizes))
    encoder = Swin(replace(sizes.encoder, drop_path=config.drop_path), maskable=True)
    return METHODS[name](encoder, config)


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

    def step(patches: int) -> Callable[[], object]:
        torch.manual_seed(0)
        image = torch.randn(patches, 1, *sizes.patch, device=device)
        return finetuning.supervised_step(build().to(device), image, ours, compiled=False)

    flops = operations(step(1))
    return _fitting(step, sizes.patches, device, seconds, flops)


def _fitting(
    make: Callable[[int], Callable[[], object]],
    most: int,
    device: torch.device,
    seconds: float,
    flops: float,
) -> dict:
    """`throughput.step_costs` of the largest of most, most / 2, ... scans that the memory holds."""
    scans = most
    while True:
        try:
            return throughput.step_costs(make(scans), scans, device, seconds, flops * scans)
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


def bench_parts(sizes: BenchSizes, device: torch.device) -> Iterator[Part]:
    """Name and call of every part, what matters most first; a call takes the seconds that it may
    last.
    """
    yield "correctness", lambda seconds: correctness(sizes, device)
    for name in dict.fromkeys(("smit", "simmim", *METHODS)):
        yield f"pretraining, {name}", partial(pretraining, name, sizes, device)
    for name, build, ours in _networks(sizes):
        yield f"fine-tuning, {name}", partial(tuning, build, ours, sizes, device)


def _networks(sizes: BenchSizes) -> Iterator[tuple[str, Callable[[], torch.nn.Module], bool]]:
    """Name, how to build it, and whether it is ours."""
    config = replace(sizes.encoder, drop_path=0.0)
    for name in DECODERS:
        yield name, partial(finetuning.our_network, config, name, True), True
    for name, rival in RIVALS.items():
        yield name, partial(rival, config), False


def guarded(call: Callable[[float], dict], seconds: float) -> dict:
    """What `call` found, or why it did not; a rival that is not installed is no fault."""
    began = time.perf_counter()
    found = _found(call, seconds)
    return {**found, "took_s": time.perf_counter() - began}


def _found(call: Callable[[float], dict], seconds: float) -> dict:
    try:
        return call(seconds)
    except ModuleNotFoundError as error:
        return {"left_out": f"{error.name} is not installed"}
    except Exception as error:  # one part's failure must not lose the rest
        return _failed_part(error)


def _failed_part(error: Exception) -> dict:
    what = f"{type(error).__name__}: {error}"
    return {"failed": what[:500], "trace": traceback.format_exc()[-2000:]}


def _name_and_memory(device: torch.device) -> tuple[str, float | None]:
    """Memory in GiB; None of a CPU."""
    if device.type != "cuda":
        return "CPU", None
    properties = torch.cuda.get_device_properties(device)
    return torch.cuda.get_device_name(device), properties.total_memory / 2**30


def machine(sizes: BenchSizes, device: torch.device) -> dict:
    name, memory = _name_and_memory(device)
    return {
        "device": name,
        "memory_gib": memory,
        "peak_tflops": peak_of(name),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "preset": sizes.preset,
        "crop": sizes.crop,
        "settings": sizes.settings,
        "graph": sizes.graph,
    }


def parse_device_options(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Exits where they ask for a GPU that is not there."""
    parser = parser_of(__doc__)
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
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="of the methods that have the field, as: w_parcels=1",
    )
    parser.add_argument(
        "--graph", action="store_true", help="pretraining steps replayed as CUDA graphs"
    )
    args = parser.parse_args(argv)
    if args.graph and args.device == "cpu":
        parser.error("--graph needs --device cuda: a CUDA graph is of an NVIDIA GPU")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no NVIDIA GPU; a dry run without one is: --device cpu --quick")
    return args


def sizes_of(args: argparse.Namespace) -> BenchSizes:
    crop = tuple(args.crop)
    full = BenchSizes(args.preset, preset(args.preset), crop, crop, args.batch_size)
    sizes = TINY if args.quick else full
    return replace(sizes, settings=(*sizes.settings, *args.set), graph=args.graph)


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
        torch.cuda.empty_cache()  # does nothing where no GPU was used


def _folder() -> Path:
    """Where the results go, which is made."""
    folder = Path(os.environ.get("OUT") or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(argv: list[str] | None = None) -> None:
    args = parse_device_options(argv)
    sizes = sizes_of(args)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    report = GPUReport(_folder(), machine(sizes, device))
    chosen = [(name, call) for name, call in bench_parts(sizes, device) if args.only in name]
    run_parts(chosen, args.minutes, args.quick, report.add)
    print("\n" + report.table())


if __name__ == "__main__":
    main()
