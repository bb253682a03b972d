"""What a pretraining took: hours, throughput, and the fraction of the device's peak."""

from __future__ import annotations

from statistics import median

import torch

from nnssl.encoder.swin import Swin, SwinConfig
from nnssl.methods import METHODS
from nnssl.train.capacity import trial
from nnssl.train.peak import operations, peak_of


def seconds(rows: list[dict], batch_size: int) -> float:
    """Of training, by the rows of log.jsonl: pauses between a stop and `--c` do not count."""
    before, total = 0, 0.0
    for row in rows:
        total += (row["step"] - before) * batch_size / row["samples_per_second"]
        before = row["step"]
    return total


def middle(rows: list[dict], key: str) -> float | None:
    """The median of a column of the log; None where it has none."""
    values = [row[key] for row in rows if key in row]
    return median(values) if values else None


def scan_operations(header: dict) -> float:
    """Floating-point operations of forward and backward pass for one scan.

    Counted in one step of the run's method with random weights: on a GPU where there is one, since
    a CPU may take a minute for it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Swin(SwinConfig.from_dict(header["encoder"]), maskable=True)
    kind = METHODS[header["method"]]
    method = kind(encoder, kind.Config.stored(header["method_config"])).to(device)
    views = trial(method, tuple(header["crop"]), device)
    return operations(lambda: method(views).losses["total"].backward())


def fraction_of_peak(header: dict, hardware: dict, scans_per_second: float) -> float | None:
    """Of the dense bf16 peak in the GPU's data sheet; None for a device whose peak is not known.

    hardware: of a sitting in manifest.json. Scans that are computed again to save memory
    (`--checkpointing`) count once.
    """
    peak = peak_of(hardware.get("gpu", ""))
    if peak is None:
        return None
    return scans_per_second * scan_operations(header) / (hardware["processes"] * peak * 1e12)
