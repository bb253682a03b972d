"""Trained models as ONNX and torch.export: the logits are PyTorch's, for any number of patches."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import command
from synthetic_checkpoints import HU, pretrained
from synthetic_trainers import DATASET_JSON, PATCH, synthetic_plans, synthetic_trainer

from nnssl import export, files
from nnssl.encoder.attention import fused, reference
from nnssl.encoder.windows import Mask
from nnssl.export import formats, trained
from nnssl.finetune.architecture import INFO
from nnssl.types import FINAL

pytestmark = pytest.mark.usefixtures("one_thread", "nnunet_env")
CT = {"percentile_00_5": -900.0, "percentile_99_5": 1200.0, "mean": 90.0, "std": 140.0}
BENT = {"interior": [(-200.0, -600.0), (200.0, 500.0)]}  # several pieces, as plans have by default
WIDE = torch.Generator().manual_seed(5)


def model_folder(
    tmp_path: Path,
    configuration: str = "3d_fullres",
    dataset_json: dict = DATASET_JSON,
    transpose: tuple[int, ...] = (0, 1, 2),
) -> Path:
    """What a training of no steps leaves in $nnUNet_results; its weights are drawn at random."""
    plans = synthetic_plans() | {
        INFO: {"checkpoint_path": str(pretrained(tmp_path / "ssl", hu=HU | BENT))},
        "foreground_intensity_properties_per_channel": {"0": CT},
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "image_reader_writer": "SimpleITKIO",
    }
    name = "SwinScratchTrainer" if configuration == "2d" else "SwinSSLTrainer"
    trainer = synthetic_trainer(name, plans, configuration, dataset_json)
    trainer.initialize()
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=WIDE)
    folder = Path(trainer.output_folder_base)
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)[
        : len(trainer.configuration_manager.patch_size)
    ]
    files.write_json(folder / "plans.json", trainer.plans_manager.plans)
    files.write_json(folder / "dataset.json", dataset_json)
    trainer.save_checkpoint(str(folder / "fold_0" / FINAL))
    return folder


def logits_by_file(path: Path, images: torch.Tensor) -> torch.Tensor:
    """As somebody without this package runs it."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images).detach()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def test_a_trained_network_is_exported_for_any_number_of_patches(tmp_path, capsys):
    model, out = model_folder(tmp_path, transpose=(1, 0, 2)), tmp_path / "out"
    assert command("nnssl_export", "-m", model, "-f", 0, "-o", out) == 0
    network = trained.load_model_folder(model, "0", FINAL).network
    images = torch.randn(3, 1, *PATCH, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        right = network(images)
    printed = capsys.readouterr().out
    for name in ("model.onnx", "model.pt2"):
        got = logits_by_file(out / name, images)
        assert (got - right).abs().max() < 1e-3 * right.abs().max(), name
        assert f"{out / name}: logits within" in printed
    card = json.loads((out / "model.json").read_text())
    assert card["input"] == {
        "name": "image",
        "dtype": "float32",
        "shape": ["batch", 1, *PATCH],
        "axes": ["batch", "channel", "y", "z", "x"],
    }
    assert card["output"]["shape"] == ["batch", 3, *PATCH]
    assert card["files"]["model.onnx"]["sha256"] == files.sha256(out / "model.onnx")
    assert card["preprocessing"]["spacing"] == [1.5, 1.0, 1.0]
    assert card["preprocessing"]["channels"] == [
        {
            "name": "CT",
            "normalisation": "CTNormalization",
            "clip": [-900.0, 1200.0],
            "subtract": 90.0,
            "divide_by": 140.0,
        }
    ]
    assert card["labels"]["channels"] == [0, 1, 2]
    assert card["sliding_window"]["mirror_axes"] == [0, 1, 2]
    assert card["made_from"]["trainer"] == "SwinSSLTrainer"
    assert card["made_from"]["configuration"] == "3d_fullres"
    assert card["made_from"]["pretrained"]["method"] == "smit"


def test_a_2d_network_with_regions(tmp_path):
    regions = DATASET_JSON | {
        "labels": {"background": 0, "all": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
    }
    model = model_folder(tmp_path, "2d", regions)
    path = export.export(export.ExportRequest(model, tmp_path / "out", formats=("pt2",)))
    card = json.loads(path.read_text())
    assert list(card["files"]) == ["model.pt2"]
    assert card["input"]["axes"] == ["batch", "channel", "y", "x"]
    assert card["labels"]["label_of_channel"] == [1, 2]
    assert card["labels"]["channels"] == [[1, 2], 2]


def test_what_is_not_there_is_named_with_what_is(tmp_path, capsys):
    model = tmp_path / "SwinSSLTrainer__smitA__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    for name in ("plans.json", f"fold_0/{FINAL}"):
        (model / name).touch()
    assert command("nnssl_export", "-m", model, "-f", 3, "-o", tmp_path / "out") == 1
    assert f"has: fold_0/{FINAL}. Choose with -f FOLD" in capsys.readouterr().err
    assert command("nnssl_export", "-m", tmp_path, "-o", tmp_path / "out") == 1
    assert "is not an nnU-Net model folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "EOFError"), (b"text", "Error"), (None, "KeyError: 'trainer_name'")],
)
def test_what_is_no_model_of_nnunet_is_refused(tmp_path, content, message):
    """An empty file, text, and a pretraining's checkpoint, in place of the checkpoint of a fold."""
    path = tmp_path / "fold_0" / "checkpoint_final.pth"
    path.parent.mkdir()
    for name in ("plans.json", "dataset.json"):
        files.write_json(tmp_path / name, {})
    if content is None:
        pretrained(path.parent)
    else:
        path.write_bytes(content)
    wanted = rf"fold_0.checkpoint_final\.pth cannot be read as a model of nnU-Net: .*{message}"
    with pytest.raises(export.ExportError, match=wanted):
        trained.load_model_folder(tmp_path, "0", path.name)


def test_a_checkpoint_of_another_fold_is_not_exported_for_this_one(tmp_path):
    """nnU-Net was given its name alone, and read that of the fold."""
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        (tmp_path / f"fold_{fold}" / FINAL).touch()
    files.write_json(tmp_path / "plans.json", {})
    for path in (f"../fold_1/{FINAL}", str(tmp_path / "fold_1" / FINAL)):
        with pytest.raises(export.ExportError, match=r"-chk takes the name of a file .* got"):
            trained.load_model_folder(tmp_path, "0", path)


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(export.ExportError, match=r"nnssl-swin\[export\].*--formats pt2"):
        formats.require_packages(["onnx"])
    formats.require_packages(["pt2"])


def test_a_file_with_other_logits_is_not_kept(tmp_path, monkeypatch):
    model = SimpleNamespace(network=torch.nn.Identity(), channels=1, patch=(2, 2))
    path = tmp_path / "model.pt2"
    monkeypatch.setattr(formats, "_save_pt2", lambda program, file: file.touch())
    monkeypatch.setattr(formats, "_read_pt2", lambda file: lambda images: model.network(images) + 1)
    with pytest.raises(export.ExportError, match=r"differ from PyTorch's by .* please report"):
        formats.write_verified(None, model, path)
    assert not path.exists()


def test_the_formula_of_an_exported_network_is_the_attention_of_all_others():
    chance = torch.Generator().manual_seed(0)
    qkv = torch.randn(6, 8, 3, 2, 5, generator=chance)
    bias = torch.randn(2, 8, 8, generator=chance)
    mask = Mask.of(torch.randint(2, (2, 8), generator=chance), torch.tensor([1, 0, 1]), -100.0)
    for each in (None, mask):
        torch.testing.assert_close(
            reference.attention(qkv, bias, each), fused.attention(qkv, bias, each)
        )
