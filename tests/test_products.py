"""oneDNN computes the products of a CPU's training, and only while it lasts."""

from __future__ import annotations

import micro
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from nnssl.cpu.products import by_onednn
from nnssl.modules.contrast import nt_xent
from nnssl.modules.heads import Prototypes
from nnssl.modules.running import RunningMean
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


def test_what_is_divided_by_a_temperature_is_fp32_on_every_processor() -> None:
    """AMX rounds factors to bf16 in a pretraining."""
    torch.manual_seed(0)
    prototypes, rows = Prototypes(32, 512), F.normalize(torch.randn(256, 32), dim=-1)
    counts = torch.rand(4096)
    many, mean = torch.randn(4096, 24), RunningMean(24, 0.9)
    views = [torch.randn(8, 64) for _ in range(2)]
    with by_onednn(CPU):
        logits = prototypes(rows)
        mean.accumulate(many, counts)
        loss = nt_xent(*views, 0.04)[0]
    weights = F.normalize(prototypes.weight.double(), dim=-1)
    torch.testing.assert_close(logits.double(), rows.double() @ weights.T, atol=1e-6, rtol=0)
    total = (many.double() * counts.double()[:, None]).sum(0)
    torch.testing.assert_close(mean._pending[0][:-1].double(), total, atol=1e-3, rtol=0)
    torch.testing.assert_close(loss, nt_xent(*views, 0.04)[0], atol=1e-5, rtol=0)


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
