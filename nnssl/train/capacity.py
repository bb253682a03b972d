"""The batch size that fits, from the memory that one scan's step keeps for its backward pass."""

from __future__ import annotations

import time
from math import log2

import torch
from torch import nn

from nnssl import dist, limits
from nnssl.methods.method import Method
from nnssl.modules.running import discard_all
from nnssl.train.batches import generator_for
from nnssl.train.precision import Precision
from nnssl.types import Shape

# of the free memory; the rest is for gradients in flight, the optimiser and fragmentation
FRACTION = 0.6
# scans per process; more costs time and gains little (SMIT: 6 a GPU)
MOST = {"cpu": 8, "cuda": 32, "mps": 8}


PASSES = 3  # that are timed, as long as they take less than a step
SHORTEST = 1e-3  # seconds of a pass that count: clocks may stand still for as long
STEP_SECONDS = 1.5  # of a step on a CPU: progress is seen, and a scan's gradient is used soon


def trial(method: Method, crop: Shape, device: torch.device) -> dict:
    """The views of one synthetic scan, of noise: in a constant one nothing would be hidden."""
    noise = torch.randn(1, 1, *method.region(crop), generator=generator_for(0, 1)).to(device)
    return method.prepare_views(
        noise, [generator_for(0, 0)], torch.zeros(1, dtype=torch.long, device=device)
    )


def timely_batch_size(method: Method, crop: Shape, device: torch.device) -> int:
    """Scans of a CPU's step of some `STEP_SECONDS`, a power of two, and at least as many as the
    method needs.

    By the least CPU time of a few passes: a machine that is busy at the moment, or a first pass,
    should not decide on a run.
    """
    views = trial(method, crop, device)
    passes = [_seconds_per_scan(method, views)]
    while len(passes) < PASSES and sum(passes) < STEP_SECONDS:
        passes.append(_seconds_per_scan(method, views))
    timely = 2 ** round(log2(STEP_SECONDS / min(passes)))
    return int(min(max(timely, method.smallest_batch), MOST[device.type]))


def _seconds_per_scan(method: Method, views: dict) -> float:
    """CPU time of one pass by thread."""
    began = time.process_time()
    method(views).losses["total"].backward()
    seconds = (time.process_time() - began) / torch.get_num_threads()
    method.zero_grad(set_to_none=True)
    discard_all(method)
    return max(seconds, SHORTEST)


def fitting_batch_size(method: Method, crop: Shape, device: torch.device, bf16: bool) -> int:
    """Scans that a process can hold at once, from 1 to `MOST`: one scan is tried, its saved
    activations are counted.
    """
    needed = saved_bytes(method, trial(method, crop, device), device, bf16)
    discard_all(method)
    # a gradient and AdamW's two moments
    free = FRACTION * free_bytes(device) - 3 * _trained_bytes(method)
    return int(max(1, min(MOST[device.type], free // needed)))


def _trained_bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def saved_bytes(model: nn.Module, views: dict, device: torch.device, bf16: bool) -> int:
    """Bytes that autograd keeps for the backward pass of `model(views)`, parameters apart."""
    precision, kept = Precision(model, device, torch.bfloat16 if bf16 else None), {}
    own = _storages(model)

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with precision.weights():
        own |= _storages(model)
        with (
            torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
            precision.autocast(),
        ):
            result = model(views)
        del result
    return sum(kept.values())


def _storages(model: nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


def free_bytes(device: torch.device) -> int:
    """Free memory of the device; for a CPU this process's fraction of the machine's or of what its
    cgroup may have.

    8 GiB where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free, allowed = _available_bytes(), limits.free_memory()
    if allowed is not None:
        free = min(free, allowed)
    return free // dist.local_world_size()


def _available_bytes() -> int:
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123 - a file of the kernel's, not of ours
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 8 << 30
