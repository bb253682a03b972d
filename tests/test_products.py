"""oneDNN computes the products of a CPU's training, and only while it lasts."""

from __future__ import annotations

import micro
import pytest
import torch
from torch.utils.data import default_collate

from nnssl.cpu.products import by_onednn
from nnssl.train import pretrain
from nnssl.train.pretrain import Options

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "exact", "inside"),
    [(CPU, False, "medium"), (CPU, True, "highest"), (torch.device("cuda"), False, "highest")],
)
def test_it_is_told_so_inside_alone(device: torch.device, exact: bool, inside: str) -> None:
    @by_onednn(device, exact)
    def fails() -> None:
        assert torch.get_float32_matmul_precision() == inside
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_stay_right() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(300, 48), torch.randn(48, 65)
    with by_onednn(CPU):
        found = a @ b
    exact = a.double() @ b.double()
    assert (found - exact).norm() / exact.norm() < 1e-2  # with AMX the factors are bf16


def test_views_are_exact_in_a_pretraining(monkeypatch, tmp_path) -> None:
    """Rounded to bf16, a scan that is not blurred would change with one that is."""
    run, found = micro.run(tmp_path), []
    prepare = run.method.prepare_views

    def noted(*args):
        found.append(torch.get_float32_matmul_precision())
        return prepare(*args)

    monkeypatch.setattr(run.method, "prepare_views", noted)
    with by_onednn(CPU):
        run.prepare_views(default_collate([run.crops[0], run.crops[1]]))
        assert torch.get_float32_matmul_precision() == "medium"
    assert found == ["highest"]


@pytest.mark.parametrize(("fp32", "expected"), [(False, "medium"), (True, "highest")])
def test_a_pretraining_uses_it_unless_fp32_is_asked_for(
    monkeypatch, nnunet_env, tmp_path, fp32: bool, expected: str
) -> None:
    found = []
    options = Options("simmim", sources=(tmp_path,), name="made", device="cpu", fp32=fp32)
    for name in ("prepare_scans", "results_folder", "build_run"):
        monkeypatch.setattr(pretrain, name, lambda *_: tmp_path)
    monkeypatch.setattr(pretrain.earlier_run, "read_earlier_run", lambda *_: None)
    monkeypatch.setattr(pretrain.parcels_choice, "choose", lambda *_: ())
    monkeypatch.setattr(pretrain, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(
        pretrain, "train", lambda *_: found.append(torch.get_float32_matmul_precision())
    )
    with pytest.raises(AttributeError, match="folder"):  # of the run, which is none here
        pretrain.pretrain(options, print)
    assert found == [expected]
    assert torch.get_float32_matmul_precision() == "highest"
