"""A collection held in memory gives the crops of the disk bit for bit; it is held where it fits."""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path

import blosc2
import micro
import numpy as np
import pytest
import torch
from accelerator import Waits
from synthetic_scans import ct_array, small_plan, write_volume

from nnssl.bench.lent import META, lent
from nnssl.data.crops import PARCELS, Crops
from nnssl.data.held import Held, layout
from nnssl.data.plan import resampled_shape
from nnssl.data.preprocess import preprocess, store
from nnssl.signals import Interrupted
from nnssl.train import batches, cache
from nnssl.train.loop import train
from nnssl.train.run import Run, RunConfig

SHAPES = ((40, 70, 60), (20, 90, 50), (33, 65, 47))
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GB = 10**9


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple:
    """(folder, plan) of three scans with parcels, the first of them in float32, as earlier versions
    stored it.
    """
    folder = tmp_path_factory.mktemp("stored")
    arrays = [ct_array(shape, seed) for seed, shape in enumerate(SHAPES)]
    paths = [write_volume(folder / "raw" / f"{i}.mha", array) for i, array in enumerate(arrays)]
    plan = small_plan(paths, arrays, spacing=(3.0, 2.0, 1.5), crop=(16, 32, 32))
    assert preprocess(plan, folder, 0) == {}
    for number, case in enumerate(plan.cases):
        path = folder / f"{case.id}.b2nd"
        voxels = blosc2.open(str(path), mode="r")[:]
        if number == 0:
            store(voxels.astype(np.float32) + 1e-5, path, plan.crop, np.float32)
        store((voxels > 0).astype(np.uint8), folder / f"{case.id}{PARCELS}", plan.crop, np.uint8)
    return folder, plan


def crops_of(stored, how: str, shape=(16, 24, 24), parcels=False) -> Crops:
    folder, plan = stored
    crops = Crops(folder, plan, shape, seed=3, parcels=parcels)
    if how != "off":
        crops.source = Held(layout(folder, crops.cases, crops.endings), CPU, late=how == "gpu")
    return crops


def batch_of(crops: Crops, indices) -> dict:
    batch = batches.collate([crops[index] for index in indices])
    return batch if "crop" in batch else crops.cut(batch)


@pytest.mark.parametrize("shape", [(16, 24, 24), (60, 100, 70), (24, 32)])
@pytest.mark.parametrize("how", ["ram", "gpu"])  # gpu: cut as on a GPU, by the process that trains
def test_crops_are_those_of_the_disk_bit_for_bit(stored, how, shape):
    disk, held = (crops_of(stored, kind, shape, parcels=True) for kind in ("off", how))
    for indices in ([0, 1, 2], [7], [3, 11, 4, 5]):
        wanted, got = (batch_of(crops, indices) for crops in (disk, held))
        got.pop("corner", None)
        assert set(got) == set(wanted)
        for key, value in wanted.items():
            assert got[key].dtype == value.dtype, key
            assert torch.equal(got[key], value), key
    assert wanted["crop"].dtype == torch.float32  # a scan of an earlier version was among them


def test_what_was_cut_can_be_written_to(stored):
    """It is no window on the collection."""
    crops = crops_of(stored, "ram")
    before = crops[4]["crop"].clone()
    crops[4]["crop"].fill_(9)
    assert torch.equal(crops[4]["crop"], before)


def _private(crops: Crops, into) -> None:
    """Kilobytes that a process which has read all of the block has for itself."""
    # not by PyTorch, whose threads a fork does not take along
    assert crops.source._block.numpy().sum(dtype=np.int64) == 128 << 20
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    into.put(sum(int(line.split()[1]) for line in rollup if line.startswith("Private")))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells it")
def test_readers_share_the_block(stored):
    folder, _ = stored
    crops = crops_of(stored, "ram")
    large = layout(folder, crops.cases, crops.endings)
    crops.source = Held(replace(large, bytes=128 << 20), CPU)
    crops.source._block.fill_(1)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    reader = context.Process(target=_private, args=(crops, results))
    reader.start()
    kilobytes = results.get()
    reader.join()
    assert kilobytes < 64 << 10


def test_a_reader_that_does_not_cut_is_not_sent_the_block(stored):
    late, early = (pickle.dumps(crops_of(stored, how)) for how in ("gpu", "ram"))
    assert len(late) < 50_000 < len(early)
    sample = pickle.loads(late)[5]
    assert "crop" not in sample
    assert sample["corner"].shape == (3,)


def run_on(stored, folder: Path, how: str) -> Run:
    crops = crops_of(stored, how, shape=micro.CROP)
    chosen = RunConfig(steps=4, batch_size=2, log_every=1, save_every=2, workers=0)
    header = micro.header("simmim")
    return Run(micro.method("simmim"), crops, chosen, folder, header, CPU)


@pytest.mark.usefixtures("one_thread")
def test_a_run_may_go_on_with_another_cache(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("nnssl.train.log.Log.draw", lambda self: None)
    whole = run_on(stored, tmp_path / "whole", "off")
    train(whole)
    first = run_on(stored, tmp_path / "parts", "gpu")
    micro.stop_after(first, 2)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        train(first)
    second = run_on(stored, tmp_path / "parts", "ram")
    assert second.resume() == []
    train(second)
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, second.method.state_dict()[name]), name


def test_cutting_on_the_device_waits_for_nothing(stored):
    """The block on a device whose tensors have no values: what asks for one fails."""
    crops = crops_of(stored, "gpu", parcels=True)
    late = batches.collate([crops[index] for index in range(4)])
    crops.source._block = crops.source._block.to(META)
    with lent(), Waits() as waits:
        batch = crops.cut(late)
    assert waits.found == {}
    assert batch["crop"].device == META
    assert batch["crop"].shape == (4, 1, 16, 24, 24)


# -- which one -------------------------------------------------------------------------------------


def chosen(stored, monkeypatch, requested: str, device=CPU, host=100 * GB, gpu=80 * GB) -> tuple:
    """Where the crops come from, and what was said."""
    devices, said = [], []
    monkeypatch.setattr(cache, "free_bytes", lambda of: gpu if of.type == "cuda" else host)
    monkeypatch.setattr(cache, "Held", lambda layout, where: devices.append(where.type))
    crops = crops_of(stored, "off")
    cache.hold(crops, stored[1], requested, device, said.append)
    assert len(said) == 1
    return (devices or ["disk"])[0], said[0]


@pytest.mark.parametrize(
    ("requested", "device", "host", "gpu", "place", "words"),
    [
        ("auto", CPU, 100 * GB, 0, "cpu", "cache: ram, 1 MB in all, within 25% of 100.0 GB"),
        ("auto", CPU, 1 << 19, 0, "disk", "exceed 25% of 0.0 GB of free host memory"),
        ("auto", CUDA, 100 * GB, 80 * GB, "cuda", "cache: gpu, 1 MB in all, within 25% of 80.0 GB"),
        ("auto", CUDA, 100 * GB, 1 << 19, "cpu", "cache: ram, 1 MB in all, within 50% of 100.0 GB"),
        ("auto", CUDA, 1 << 19, 1 << 19, "disk", "free GPU memory; 1 MB exceed 50%"),
        ("ram", CUDA, 100 * GB, 80 * GB, "cpu", "within 80% of 100.0 GB"),
        ("gpu", CUDA, 0, 80 * GB, "cuda", "within 80% of 80.0 GB"),
        ("off", CUDA, 100 * GB, 80 * GB, "disk", "cache: off, as set by --cache"),
    ],
)
def test_what_fits_is_held_and_one_line_says_why(
    stored, monkeypatch, requested, device, host, gpu, place, words
):
    got, said = chosen(stored, monkeypatch, requested, device, host, gpu)
    assert got == place
    assert words in said
    assert "\n" not in said


def test_what_is_asked_for_and_does_not_fit_is_an_error(stored, monkeypatch):
    with pytest.raises(ValueError, match=r"--cache ram: 1 MB exceed 80%.*--cache off"):
        chosen(stored, monkeypatch, "ram", host=1 << 19)
    with pytest.raises(ValueError, match=r"--cache gpu needs -device cuda, .* cpu: --cache ram"):
        cache.require_supported("gpu", CPU)
    with pytest.raises(ValueError, match="known: auto, ram, gpu, off"):
        cache.require_supported("disk", CPU)


def test_the_expected_size_is_that_of_the_plan(stored):
    folder, plan = stored
    crops = crops_of(stored, "off", parcels=True)
    voxels = [np.prod(resampled_shape(c.shape, c.spacing, plan.spacing)) for c in plan.cases]
    assert cache.least_bytes(crops, plan) == 3 * sum(voxels)
    # the first volume is of float32, and each begins at a multiple of 64 bytes
    found = layout(folder, crops.cases, crops.endings)
    assert 0 <= found.bytes - (3 * sum(voxels) + 2 * voxels[0]) < 6 * 64
