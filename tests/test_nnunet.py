"""End to end through nnU-Net's own commands: train, resume, validate, choose, export, predict
without the SSL file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from micro import ENCODER
from synthetic_checkpoints import pretrained

from nnssl import files, trainer_path
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.architecture import INFO
from nnssl.plans.derive import PlansRequest, derive
from nnssl.recipe import RECIPE
from nnssl.types import BASE

DATASET, ID = "Dataset902_Phantoms", "902"
PATCH = (12, 32, 28)  # thin, and no multiple of 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six phantoms, planned and preprocessed by nnU-Net, once for this file; the value maps
    variable to folder.
    """
    from nnssl import phantoms

    base = tmp_path_factory.mktemp("nnunet")
    folders = {
        name: base / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    for folder in folders.values():
        folder.mkdir()
    phantoms.write_nnunet_dataset(
        folders["nnUNet_raw"] / DATASET, training=range(6), unseen=range(6, 7), shape=(20, 40, 36)
    )
    with pytest.MonkeyPatch.context() as patch:
        set_variables(patch, folders)
        command(
            "nnUNetv2_plan_and_preprocess",
            "-d",
            ID,
            "-c",
            "2d",
            "3d_fullres",
            "-npfp",
            1,
            "-np",
            1,
            1,
        )
    return folders


def set_variables(patch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        patch.setenv(name, str(folder))
    patch.setenv(trainer_path.VARIABLE, trainer_path.trainers_folder())


@pytest.fixture(autouse=True)
def _variables(folders, monkeypatch):
    set_variables(monkeypatch, folders)
    # augmentation in this process; nnU-Net's planning cannot have it so
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def plans_named(name: str, epochs: int = 1, mirror: bool = True, **options) -> None:
    recipe = {
        "epochs": epochs,
        "iterations": 2,
        "val_iterations": 1,
        "foreground": 1.0,
        "mirror": mirror,
    }
    derive(
        PlansRequest(
            DATASET,
            base=BASE,
            name=name,
            decoder="light",
            patch=PATCH,
            batch_size=2,
            recipe=recipe,
            **options,
        )
    )


def train(configuration: str, trainer: str, plans: str, *more: str) -> Path:
    """Train fold 0; the fold's folder."""
    command(
        "nnUNetv2_train", ID, configuration, 0, "-tr", trainer, "-p", plans, "-device", "cpu", *more
    )
    return Path(
        os.environ[checkpoint_choice.RESULTS],
        DATASET,
        f"{trainer}__{plans}__{configuration}",
        "fold_0",
    )


def log_of(fold: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(fold.glob("training_log_*.txt")))


@pytest.mark.slow
def test_from_checkpoint_to_segmentation_without_the_ssl_file(folders, tmp_path):
    ssl = pretrained(tmp_path / "ssl")
    plans_named("few", epochs=1, checkpoint=ssl)
    fold = train("3d_fullres", "SwinSSLTrainer", "few")
    info = files.read_json(fold.parent / "plans.json")[INFO]
    assert f"{info['total']} of {info['total']} encoder tensors matched" in log_of(fold)
    assert info["sha256"] in log_of(fold)
    assert float(files.read_json(fold / "debug.json")["oversample_foreground_percent"]) == 1.0
    assert (fold / "validation" / "summary.json").is_file()

    plans_named("few", epochs=2, checkpoint=ssl)
    ssl.unlink()
    resumed = train("3d_fullres", "SwinSSLTrainer", "few", "--c")
    assert torch.load(resumed / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
    assert log_of(fold).count("encoder tensors matched") == 1

    model = ["-tr", "SwinSSLTrainer", "-p", "few", "-c", "3d_fullres", "-f", "0"]
    command(
        "nnUNetv2_find_best_configuration",
        ID,
        "-c",
        "3d_fullres",
        "-tr",
        "SwinSSLTrainer",
        "-p",
        "few",
        "-f",
        0,
        "--disable_ensembling",
        "-np",
        1,
    )
    command("nnUNetv2_export_model_to_zip", "-d", ID, "-o", tmp_path / "model.zip", *model)
    assert (tmp_path / "model.zip").stat().st_size > 1_000_000
    images = shutil.copytree(folders["nnUNet_raw"] / DATASET / "imagesTs", tmp_path / "images")
    assert (
        len(predicted_elsewhere(tmp_path / "model.zip", images, tmp_path / "elsewhere", model)) == 1
    )


# Other people's machine: results of their own, no data, and our package, whose start-up file alone
# names the trainers.
THEIR_PREDICT = """
import site, sys
site.addsitedir(sys.argv.pop(1))
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
predict_entry_point()
"""


def predicted_elsewhere(
    model: Path, images: Path, elsewhere: Path, arguments: list[str]
) -> list[Path]:
    """The segmentations of `images` by the exported `model`, installed and used under
    $nnUNet_results = elsewhere.
    """
    results, site, out = elsewhere / "results", elsewhere / "site", elsewhere / "out"
    results.mkdir(parents=True), site.mkdir()
    shutil.copy(Path(__file__).parents[1] / "trainers" / "nnssl_trainers.pth", site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(checkpoint_choice.RESULTS, str(results))
        command("nnUNetv2_install_pretrained_model_from_zip", model)
    left_out = (
        "nnUNet_raw",
        "nnUNet_preprocessed",
        trainer_path.VARIABLE,
        checkpoint_choice.VARIABLE,
    )
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {
        checkpoint_choice.RESULTS: str(results),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    call = [
        sys.executable,
        "-c",
        THEIR_PREDICT,
        site,
        "-d",
        ID,
        "-i",
        images,
        "-o",
        out,
        *arguments,
    ]
    call += ["-device", "cpu", "-npp", "1", "-nps", "1"]
    done = subprocess.run(
        [*map(str, call)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        cwd=elsewhere,
    )
    assert done.returncode == 0, done.stderr
    return sorted(out.glob("*.nii.gz"))


def plans_like_nnssl(folders: dict[str, Path], ssl: Path) -> str:
    """The plans that upstream's `nnUNetv2_preprocess_like_nnssl -n made -am default_nnunet` makes;
    their name.

    The form is that of nnunetv2/experiment_planning/like_nnssl.py at commit 202f6ba. Only the
    recipe is ours: nobody trains a thousand epochs here.
    """
    folder = folders["nnUNet_preprocessed"] / DATASET
    plans = files.read_json(folder / "nnUNetPlans.json")
    adaptation = torch.load(ssl, weights_only=True)["nnssl_adaptation_plan"]
    (pretraining,) = adaptation["pretrain_plan"]["configurations"].values()
    spacing = "Spacing__{:.2f}_{:.2f}_{:.2f}".format(
        *plans["configurations"]["3d_fullres"]["spacing"]
    )
    name = f"ptPlans__made____{spacing}___Norm__Z"
    architecture = adaptation["architecture_plans"]
    configuration = plans["configurations"]["3d_fullres"] | {
        "batch_size": 2,
        "normalization_schemes": ["ZScoreNormalization"],
        "data_identifier": f"{spacing}___Norm__Z",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": adaptation["recommended_downstream_patchsize"],
        "architecture": {
            "arch_kwargs": architecture["arch_kwargs"],
            "network_class_name": architecture["arch_class_name"],
            "_kw_requires_import": architecture["arch_kwargs_requiring_import"],
        },
    }
    info = {
        "checkpoint_path": str(ssl),
        "checkpoint_name": "made",
        **{
            key: adaptation[key]
            for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")
        },
        "pt_num_in_channels": adaptation["pretrain_num_input_channels"],
        "pt_used_patchsize": pretraining["patch_size"],
        "pt_recommended_downstream_patchsize": adaptation["recommended_downstream_patchsize"],
        "citations": [],
    }
    recipe = {"epochs": 1, "iterations": 2, "val_iterations": 1}
    plans |= {
        "configurations": {"3d_fullres": configuration},
        "pretrain_info": info,
        RECIPE: recipe,
    }
    files.write_json(folder / f"{name}.json", plans | {"plans_name": name})
    return name


def preprocess_here(plans: str, folders: dict[str, Path]) -> None:
    """nnU-Net's own preprocessor, case by case in this process."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    top, raw = folders["nnUNet_preprocessed"] / DATASET, folders["nnUNet_raw"] / DATASET
    manager = PlansManager(str(top / f"{plans}.json"))
    configuration = manager.get_configuration("3d_fullres")
    out = top / configuration.data_identifier
    out.mkdir()
    description = files.read_json(raw / "dataset.json")
    for case, paths in get_filenames_of_train_images_and_targets(str(raw), description).items():
        preprocessor = configuration.preprocessor_class(verbose=False)
        preprocessor.run_case_save(
            str(out / case), paths["images"], paths["label"], manager, configuration, description
        )


@pytest.mark.slow
def test_plans_of_upstreams_preprocess_like_nnssl_train_and_predict(folders, tmp_path):
    ssl = pretrained(tmp_path / "ssl")
    plans = plans_like_nnssl(folders, ssl)
    preprocess_here(plans, folders)
    fold = train("3d_fullres", "SwinSSLTrainer", plans)
    info = files.read_json(fold.parent / "plans.json")[INFO]
    assert (info["matched"], info["sha256"]) == (info["total"], files.sha256(ssl))
    assert f"{info['total']} of {info['total']} encoder tensors matched" in log_of(fold)
    assert (fold / "validation" / "summary.json").is_file()

    ssl.unlink()
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), (0,))
    reader = predictor.plans_manager.image_reader_writer_class()
    (image,) = (folders["nnUNet_raw"] / DATASET / "imagesTs").glob("*.nii.gz")
    pixels, properties = reader.read_images([str(image)])
    segmented = predictor.predict_single_npy_array(pixels, properties)
    assert segmented.shape == pixels.shape[1:]
    assert set(np.unique(segmented)) <= {0, 1, 2, 3}


def test_the_twin_trains_in_2d_from_a_random_start_and_without_mirroring(folders, tmp_path):
    config = ENCODER.to_dict() | {"spatial_dims": 2}
    ssl = pretrained(tmp_path / "ssl", type(ENCODER).from_dict(config))
    plans_named("flat", checkpoint=ssl, mirror=False)
    fold = train("2d", "SwinScratchTrainer", "flat")
    assert "Random start" in log_of(fold)
    assert "encoder tensors matched" not in log_of(fold)
    saved = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert saved["network_weights"]["encoder.patch_embed.proj.weight"].ndim == 4
    assert saved["inference_allowed_mirroring_axes"] is None


def test_pretrained_weights_of_another_training_leave_the_intensity_map_alone(folders, tmp_path):
    ssl = pretrained(tmp_path / "ssl")
    for name in ("soft", "bone"):
        plans_named(name, checkpoint=ssl)
    path = folders["nnUNet_preprocessed"] / DATASET / "bone.json"
    plans = files.read_json(path)
    own = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["intensity"]
    own["shift"] = [own["shift"][0] - 2.0]  # as though its foreground was other tissue
    files.write_json(path, plans)
    other = trainer_for("soft")
    other.initialize()
    other.save_checkpoint(str(given := tmp_path / "soft.pth"))
    fold = train("3d_fullres", "SwinSSLTrainer", "bone", "-pretrained_weights", str(given))
    saved = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert saved["encoder.intensity.shift"].tolist() == pytest.approx(own["shift"])
    assert f"Pretrained weights of another training: {given}" in log_of(fold)
    assert (fold / "validation" / "summary.json").is_file()


def trainer_for(plans: str, name: str = "SwinSSLTrainer", resume: bool = False):
    """As `nnUNetv2_train` makes it, not yet trained."""
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(ID, "3d_fullres", 1, name, plans, resume, torch.device("cpu"))


def test_plain_plans_take_the_only_checkpoint_and_a_validation_needs_it_no_more(folders, tmp_path):
    """As `nnUNetv2_train 902 3d_fullres 1 -tr SwinSSLTrainer`, then `--val` or `--c` where the SSL
    file has gone.
    """
    ssl = pretrained(folders["nnUNet_results"] / "nnssl" / "ct" / "smit__micro")
    first = trainer_for("nnUNetPlans")
    first.initialize()
    assert "the only one under" in log_of(Path(first.output_folder))
    first.save_checkpoint(str(tmp_path / "model.pth"))
    ssl.unlink()
    again = trainer_for("nnUNetPlans")
    again.load_checkpoint(str(tmp_path / "model.pth"))
    for name, tensor in again.network.state_dict().items():
        torch.testing.assert_close(tensor, first.network.state_dict()[name])
    assert again.plans_manager.plans[INFO] == first.plans_manager.plans[INFO]
    assert again.num_epochs == 1000
    trainer_for("nnUNetPlans").initialize()  # where there is none: the released weights
    assert "shipped with nnssl-swin as natural_parcels_tiny" in log_of(Path(first.output_folder))


def test_a_checkpoint_changed_after_planning_stops_the_training(tmp_path):
    plans_named("changed", checkpoint=pretrained(tmp_path))
    pretrained(tmp_path, seed=1)
    with pytest.raises(checkpoint_choice.OriginError, match="has changed since"):
        trainer_for("changed").initialize()


@pytest.mark.parametrize("name", ["SwinSSLTrainer", "SwinScratchTrainer"])
def test_one_step_gives_every_trained_parameter_a_gradient(tmp_path, name):
    """DDP, in which nnU-Net wraps the network for -num_gpus, stops at a parameter that gets
    none.
    """
    plans_named("step", checkpoint=pretrained(tmp_path))
    trainer = trainer_for("step", name)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    scales = trainer._get_deep_supervision_scales()
    sizes = [[round(n * s) for n, s in zip(PATCH, scale, strict=True)] for scale in scales]
    image, targets = (
        torch.randn(2, 1, *PATCH),
        [torch.randint(0, 4, (2, 1, *size)) for size in sizes],
    )
    trainer.lr_scheduler.step(0)
    trainer.train_step({"data": image, "target": targets})
    waiting = [
        name for name, p in trainer.network.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert waiting == []
    assert all(p.requires_grad for p in trainer.network.parameters())
    assert len(trainer.optimizer.state) == len(list(trainer.network.parameters()))
