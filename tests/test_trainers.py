"""The trainers: what learns when, what a resumed run continues with, and that DDP waits for nothing
in vain.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from errno import ENOSPC
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from micro import ENCODER
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from synthetic_checkpoints import pretrained
from synthetic_trainers import batch, synthetic_plans, synthetic_trainer, train_epoch
from torch.nn.parallel import DistributedDataParallel

from nnssl import checkpoint, files, finetune
from nnssl.doctor.discovery import TRAINERS
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.checkpoint_choice import OriginError
from nnssl.finetune.plans_data import ChangedPlansError
from nnssl.network.decoders import DECODERS
from nnssl.recipe import RECIPE, Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
WORLD = 2


@pytest.fixture
def ready(nnunet_env, monkeypatch, tmp_path):
    """A function that gives an initialised trainer, started from a checkpoint where it takes
    one.
    """
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path / "ssl")))
    monkeypatch.setattr(finetune.plans_file, "DECODER", "light")

    def make(name: str, seed: int = 0, **recipe):
        torch.manual_seed(seed)  # decoders and factors start at random
        trainer = synthetic_trainer(
            name, synthetic_plans({"drop_path": 0.5, "iterations": 2, **recipe})
        )
        trainer.initialize()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        return trainer

    return make


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.network.named_parameters()}


def changed(before: dict, after: dict) -> set[str]:
    """`decoder`, and `encoder.layers1` and the like, in which some weight is no longer the same bit
    by bit.
    """
    names = {name for name in before if not torch.equal(before[name], after[name])}
    return {
        name.split(".")[0] if name.startswith("decoder") else ".".join(name.split(".")[:2])
        for name in names
    }


def test_the_frozen_encoder_stays_and_has_neither_gradient_nor_state(ready):
    trainer = ready("SwinFrozenTrainer", epochs=2)
    before = weights(trainer)
    train_epoch(trainer, 0)
    assert changed(before, weights(trainer)) == {"decoder"}
    assert all(p.grad is None and not p.requires_grad for p in trainer.network.encoder.parameters())
    assert len(trainer.optimizer.state) == len(list(trainer.network.decoder.parameters()))
    assert not any(module.training for module in trainer.network.encoder.modules())
    assert all(module.training for module in trainer.network.decoder.modules())
    assert "only the decoder is trained" in Path(trainer.log_file).read_text()
    loaded = checkpoint.load(trainer.plans_manager.plans["pretrain_info"]["checkpoint_path"])
    for name, tensor in trainer.network.encoder.named_parameters():
        # adapted: so small a patch is not halved five times
        if not name.startswith("layers4.0.downsample"):
            assert torch.equal(tensor, loaded.weights[f"encoder.{name}"]), name


def test_the_frozen_encoder_is_not_shaken_after_a_validation(ready):
    trainer = ready("SwinFrozenTrainer", epochs=2)
    for epoch in (0, 1):
        train_epoch(trainer, epoch, steps=1)
        image = batch(trainer)["data"]
        for one, other in zip(
            trainer.network.encoder(image), trainer.network.encoder(image), strict=True
        ):
            assert torch.equal(one, other)
        trainer.on_validation_epoch_start()
        assert not trainer.network.decoder.training


ORDER = [
    "encoder.layers4",
    "encoder.layers3",
    "encoder.layers2",
    "encoder.layers1",
    "encoder.patch_embed",
]


def test_the_encoder_is_unfrozen_from_the_top_down(ready):
    trainer = ready("SwinGradualTrainer", epochs=10, unfreeze_every=1)
    before, found = weights(trainer), []
    for epoch in range(6):
        train_epoch(trainer, epoch, steps=1)
        found.append(changed(before, weights(trainer)))
    # A merge belongs to the stage after it: that of stage 3 begins with stage 4.
    wanted = [
        {"decoder"},
        *({"decoder", *ORDER[: n + 1]} for n in (1, 2, 3)),
        {"decoder", *ORDER[:4]},
    ]
    assert found == [*wanted, {"decoder", *ORDER}]
    assert "decoder from epoch 0, stage 4 from epoch 1" in Path(trainer.log_file).read_text()


def test_what_is_frozen_does_not_count_when_the_gradient_is_clipped(ready):
    trainer = ready("SwinGradualTrainer", epochs=10, unfreeze_every=2, clip=1e-3)
    train_epoch(trainer, 2, steps=1)
    learning = [p for g in trainer.optimizer.param_groups if g["lr"] for p in g["params"]]
    assert 0 < len(learning) < len(list(trainer.network.parameters()))
    norm = torch.stack([p.grad.norm() for p in learning]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_resumed_training_is_the_uninterrupted_one_bit_by_bit(ready, name, tmp_path):
    recipe = {"epochs": 8, "unfreeze_every": 1}
    whole, first = ready(name, **recipe), ready(name, **recipe)
    for epoch in range(4):
        train_epoch(whole, epoch)
    for epoch in range(2):
        train_epoch(first, epoch)
    first.save_checkpoint(str(tmp_path / "stopped.pth"))
    second = ready(name, seed=1, **recipe)
    second.load_checkpoint(str(tmp_path / "stopped.pth"))
    for epoch in range(second.current_epoch, 4):
        train_epoch(second, epoch)
    assert second.current_epoch == 3
    for tensor_name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, second.network.state_dict()[tensor_name]), tensor_name
    assert [g["lr"] for g in whole.optimizer.param_groups] == [
        g["lr"] for g in second.optimizer.param_groups
    ]


def test_what_was_trained_after_the_final_checkpoint_is_continued(ready, tmp_path):
    """A finished fold is trained for more epochs, and stopped: nnU-Net chooses the final one."""
    trainer = ready("SwinSSLTrainer", epochs=8)
    folder = Path(trainer.output_folder)
    for epoch, name in ((0, "final"), (1, "latest")):
        train_epoch(trainer, epoch)
        trainer.save_checkpoint(str(folder / f"checkpoint_{name}.pth"))
        os.utime(folder / f"checkpoint_{name}.pth", (0, epoch))
    for continues, epoch in ((True, 2), (False, 1)):
        plans = synthetic_plans({"epochs": 8})
        resumed = synthetic_trainer("SwinSSLTrainer", plans, continues=continues)
        resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
        assert resumed.current_epoch == epoch


def test_a_continued_model_of_another_pretraining_than_its_plans_says_so(
    ready, monkeypatch, tmp_path
):
    ready("SwinSSLTrainer").save_checkpoint(str(tmp_path / "saved.pth"))
    first = Path(os.environ[checkpoint_choice.VARIABLE])
    second = pretrained(tmp_path / "other", ENCODER, seed=1)
    for named in (first, second):
        monkeypatch.setenv(checkpoint_choice.VARIABLE, str(named))
        again = synthetic_trainer("SwinSSLTrainer", synthetic_plans())
        again.load_checkpoint(str(tmp_path / "saved.pth"))
        said = Path(again.log_file).read_text()
        assert f"This model was started from {first} (sha256 {files.sha256(first)})" in said
        assert (f"now name {second}" in said) == (named == second)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_full_disk_leaves_the_former_checkpoint(ready, name, monkeypatch, tmp_path):
    """nnU-Net overwrites it in place."""
    trainer, path = ready(name), tmp_path / "checkpoint_best.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def until_the_disk_is_full(_: object, file: str) -> None:
        Path(file).write_bytes(b"PK")
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", until_the_disk_is_full)
    with pytest.raises(files.NoRoomError, match=r"checkpoint_best.pth"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.glob("*checkpoint_best.pth")] == [path.name]


@pytest.mark.parametrize("ema", [0.9, 0.0])
def test_what_is_validated_and_saved_is_the_average_and_what_goes_on_are_the_raw_weights(
    ready, ema, tmp_path
):
    trainer = ready("SwinSSLTrainer", epochs=8, ema=ema, lr=1e-2)
    train_epoch(trainer, 0, steps=4)
    raw = weights(trainer)
    trainer.on_validation_epoch_start()
    validated = weights(trainer)
    assert bool(changed(raw, validated)) == bool(ema)
    trainer.save_checkpoint(str(tmp_path / "saved.pth"))
    assert not changed(
        validated, torch.load(tmp_path / "saved.pth", weights_only=False)["network_weights"]
    )
    resumed, ended = (ready("SwinSSLTrainer", epochs=8, ema=ema, lr=1e-2) for _ in range(2))
    for other in (resumed, ended):
        other.load_checkpoint(str(tmp_path / "saved.pth"))
    assert not changed(validated, weights(ended))
    ended.average.use()  # as in `nnUNetv2_train --val`
    assert not changed(validated, weights(ended))
    resumed.on_train_epoch_start()
    assert not changed(raw, weights(resumed))
    train_epoch(trainer, 1)
    train_epoch(resumed, 1)
    assert not changed(weights(trainer), weights(resumed))
    trainer.average.use(), resumed.average.use()
    assert not changed(weights(trainer), weights(resumed))


@pytest.mark.parametrize("changed", ["spacing", "intensities"])
def test_a_model_is_neither_continued_nor_validated_by_plans_of_other_data(
    ready, changed, tmp_path
):
    """The network keeps its intensity map, which is that of its own data."""
    ready("SwinSSLTrainer").save_checkpoint(str(tmp_path / "saved.pth"))
    plans = synthetic_plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 3  # nothing of the data
    synthetic_trainer("SwinSSLTrainer", plans).load_checkpoint(str(tmp_path / "saved.pth"))
    if changed == "spacing":
        plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 2.0, 2.0]
    else:
        plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 0.4
    again = synthetic_trainer("SwinSSLTrainer", plans)
    with pytest.raises(ChangedPlansError, match=f"other data.*: {changed} changed.*another name"):
        again.load_checkpoint(str(tmp_path / "saved.pth"))


def test_no_validation_on_data_that_nnunet_has_planned_again(ready, monkeypatch):
    validated = []
    monkeypatch.setattr(
        nnUNetTrainer, "perform_actual_validation", lambda *_: validated.append(True)
    )
    trainer = ready("SwinSSLTrainer")
    theirs = synthetic_plans()
    del theirs[RECIPE]
    path = Path(trainer.preprocessed_dataset_folder_base, "nnUNetPlans.json")
    files.write_json(path, theirs)
    trainer.perform_actual_validation()
    theirs["foreground_intensity_properties_per_channel"]["0"]["mean"] = 0.4
    files.write_json(path, theirs)
    with pytest.raises(ChangedPlansError, match="have been planned again since: intensities"):
        trainer.perform_actual_validation()
    assert validated == [True]


def test_a_continued_training_follows_the_recipe_of_its_plans(ready, monkeypatch, tmp_path):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda *_: None)
    first = ready("SwinSSLTrainer", epochs=8)
    train_epoch(first, 0)
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    changes = {"encoder_lr": 0.6, "head_lr": 5.0, "layer_decay": 0.7, "weight_decay": 0.01}
    fresh = ready("SwinSSLTrainer", epochs=8, **changes)
    resumed = synthetic_trainer("SwinSSLTrainer", synthetic_plans({"epochs": 8, **changes}))
    resumed.load_checkpoint(str(tmp_path / "saved.pth"))
    for key in ("lr_scale", "weight_decay", "part"):
        groups = (each.optimizer.param_groups for each in (fresh, resumed))
        assert [group[key] for group in next(groups)] == [group[key] for group in next(groups)]
    parameter = resumed.optimizer.param_groups[0]["params"][0]
    assert int(resumed.optimizer.state[parameter]["step"]) == 2
    resumed.on_train_start()
    said = Path(resumed.log_file).read_text()
    assert "0.6 for the encoder (layer decay 0.7) and by 5 for the heads; weight decay 0.01" in said


def test_a_longer_gradual_training_says_which_parts_it_freezes_again(ready, monkeypatch, tmp_path):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda *_: None)
    ready("SwinGradualTrainer", epochs=20).save_checkpoint(str(tmp_path / "saved.pth"))
    resumed = synthetic_trainer("SwinGradualTrainer", synthetic_plans({"epochs": 200}))
    resumed.load_checkpoint(str(tmp_path / "saved.pth"))
    resumed.on_train_start()
    assert "stage 4 from epoch 10, stage 3 from epoch 20" in Path(resumed.log_file).read_text()


@pytest.mark.parametrize(
    "change", [{"weight_decay": 0.0}, {"encoder_lr": 0.0}, {"layer_decay": 1.0}, {"head_lr": 1.0}]
)
def test_a_recipe_that_groups_the_parameters_otherwise_validates_but_does_not_train_on(
    ready, change, monkeypatch, tmp_path
):
    deeper = replace(ENCODER, depths=(1, 1, 2, 1))
    path = pretrained(tmp_path / "deeper", deeper)
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(path))
    first = ready("SwinSSLTrainer", epochs=8)
    train_epoch(first, 0)
    first.average.use()
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    resumed = synthetic_trainer("SwinSSLTrainer", synthetic_plans({"epochs": 8, **change}))
    resumed.load_checkpoint(str(tmp_path / "saved.pth"))
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=r"--weight-decay and --encoder-lr(.|\n)*former values"):
        resumed.on_train_start()


def test_a_continued_fold_mirrors_as_the_others_do(ready, monkeypatch, tmp_path):
    """The plans were made again without --no-mirror, which then returned to its default."""
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda *_: None)
    first = ready("SwinScratchTrainer", mirror=False)
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    model = Path(first.output_folder_base)
    files.write_json(model / "plans.json", first.plans_manager.plans)
    (model / "fold_1").mkdir()
    (model / "fold_1" / "checkpoint_final.pth").touch()
    for mirror in (False, True):
        resumed = synthetic_trainer("SwinScratchTrainer", synthetic_plans({"mirror": mirror}))
        resumed.load_checkpoint(str(tmp_path / "saved.pth"))
        if mirror:
            with pytest.raises(OriginError, match="trained without mirroring"):
                resumed.on_train_start()
        else:
            resumed.on_train_start()


def test_a_training_that_goes_on_without_an_average_has_none(ready, tmp_path):
    """The recipe has changed: what was averaged before would be saved to the end."""
    first = ready("SwinSSLTrainer", epochs=8, ema=0.9, lr=1e-2)
    train_epoch(first, 0, steps=4)
    raw = weights(first)
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    resumed = ready("SwinSSLTrainer", epochs=8, ema=0.0, lr=1e-2)
    resumed.load_checkpoint(str(tmp_path / "saved.pth"))
    # as in `nnUNetv2_train --val`: nothing has been trained since
    assert changed(raw, weights(resumed))
    resumed.on_train_epoch_start()
    assert not changed(raw, weights(resumed))
    train_epoch(resumed, 1)
    raw = weights(resumed)
    resumed.on_validation_epoch_start()
    assert not changed(raw, weights(resumed))


def test_a_training_begins_with_the_moments_of_its_own_patches_and_goes_on_with_them(
    ready, monkeypatch, tmp_path
):
    parent = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer

    def loader(trainer) -> None:
        trainer.dataloader_train = iter([batch(trainer, seed) for seed in range(20)])

    monkeypatch.setattr(parent, "on_train_start", loader)
    first = ready("SwinSSLTrainer", epochs=2)
    assert float(first.network.decoder.norms[0].mean.abs().sum()) == 0
    first.on_train_start()
    assert len(list(first.dataloader_train)) == 20 - finetune.PATCHES // first.batch_size
    _, maps = first.network.eval().encode(
        torch.cat([batch(first, seed)["data"] for seed in range(16)])
    )
    for norm, each in zip(first.network.decoder.norms, maps, strict=True):
        torch.testing.assert_close(
            norm(each).mean((0, 2, 3, 4)), torch.zeros(each.shape[1]), atol=1e-4, rtol=0
        )
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    resumed = synthetic_trainer("SwinSSLTrainer", synthetic_plans({"epochs": 2}))
    resumed.load_checkpoint(str(tmp_path / "saved.pth"))
    resumed.on_train_start()
    assert len(list(resumed.dataloader_train)) == 20
    for name, tensor in first.network.decoder.norms.state_dict().items():
        assert torch.equal(tensor, resumed.network.decoder.norms.state_dict()[name])


def test_the_average_is_soon_that_of_the_last_weights():
    network = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    average = finetune.Average(network, optimizer, 0.99)
    average.use()  # nothing yet
    wanted = None
    for t in range(200):
        network.weight.grad = torch.full((1, 1), -1.0)  # so that the weight grows by one a step
        optimizer.step()
        kept = min(0.99, (1 + t) / (10 + t))
        now = network.weight.item()
        wanted = now if t == 0 else kept * wanted + (1 - kept) * now
    last = network.weight.item()
    average.use()
    assert network.weight.item() == pytest.approx(wanted, rel=1e-5)
    assert last - 30 < wanted < last
    average.restore()
    assert network.weight.item() == last


def test_the_recipe_says_when():
    assert Recipe(epochs=50).unfreeze == 2.5
    assert Recipe(epochs=50, unfreeze_every=4).unfreeze == 4
    assert "stage 4 from epoch 3, stage 3 from epoch 5" in finetune.unfreezing(Recipe(epochs=50))
    with pytest.raises(ValueError, match=r"unfreeze_every must be at least 0, got -1\.0"):
        Recipe(unfreeze_every=-1.0)


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_part_has_groups_of_its_own(layer_decay):
    from nnssl.network.swin_unetr import SwinUNETR

    network = SwinUNETR(
        1, 2, True, encoder=replace(ENCODER, depths=(1, 2, 3, 1)).to_dict(), decoder="light"
    )
    groups = finetune.parameter_groups(network, Recipe(layer_decay=layer_decay))
    part = {id(p): group["part"] for group in groups for p in group["params"]}
    group_of = {name: part[id(parameter)] for name, parameter in network.named_parameters()}
    assert {p for name, p in group_of.items() if name.startswith("decoder")} == {0}
    for stage in (1, 2, 3, 4):
        assert {p for name, p in group_of.items() if f"layers{stage}.0.blocks" in name} == {
            5 - stage
        }
        merge = {p for name, p in group_of.items() if f"layers{stage}.0.downsample" in name}
        assert merge == {max(1, 4 - stage)}
    assert {p for name, p in group_of.items() if "patch_embed" in name} == {5}


# -- two processes ---------------------------------------------------------------------


def as_rank(rank: int, folder: Path) -> None:
    """nnU-Net's own `initialize` and `train_step` in two processes; its DDP, told that there is no
    GPU.
    """
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    host = import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    wrap, found = host.DDP, {}
    host.DDP = lambda network, device_ids: wrap(network)
    for name in TRAINERS:
        for decoder in DECODERS:
            for deep in (True, False):
                finetune.plans_file.DECODER = decoder
                found[name, decoder, deep] = two_steps(name, deep, rank)
    finetune.plans_file.DECODER = "light"
    found["control"] = two_steps("SwinSSLTrainer", True, rank, control=True)
    torch.save(found, folder / f"found{rank}.pth")
    td.destroy_process_group()


def two_steps(name: str, deep_supervision: bool, rank: int, control: bool = False) -> dict | str:
    """What learnt, and its weights after two steps; or the error of DDP."""
    trainer = synthetic_trainer(
        name, synthetic_plans({"epochs": 10, "unfreeze_every": 1, "drop_path": 0.5})
    )
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None  # nnU-Net's DDP knows GPUs only
    trainer.enable_deep_supervision = deep_supervision
    trainer.initialize()
    trainer.set_deep_supervision_enabled(deep_supervision)
    trainer.on_train_epoch_start()
    if control:  # heads that nobody asks
        trainer.enable_deep_supervision, trainer.loss = False, trainer.loss.loss
        trainer.set_deep_supervision_enabled(False)
    try:
        for step in range(2):
            trainer.train_step(batch(trainer, seed=2 * step + rank, size=trainer.batch_size))
    except RuntimeError as error:
        return str(error)
    parameters = dict(trainer.network.module.named_parameters())
    return {
        "wanted": {n for n, p in parameters.items() if p.requires_grad},
        "got": {n for n, p in parameters.items() if p.grad is not None},
        "finite": all(bool(torch.isfinite(p).all()) for p in parameters.values()),
        "weights": torch.cat([p.detach().flatten() for p in parameters.values()]),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(folder))
        patch.setenv(checkpoint_choice.VARIABLE, str(pretrained(folder / "ssl")))
        mp.spawn(as_rank, args=(folder,), nprocs=WORLD)
    return [torch.load(folder / f"found{rank}.pth", weights_only=False) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", TRAINERS)
def test_in_two_processes_no_parameter_waits_for_a_gradient(found, name, decoder, deep):
    one, other = (part[name, decoder, deep] for part in found)
    assert not isinstance(one, str), one
    assert one["got"] == one["wanted"] == other["wanted"]
    assert torch.equal(one["weights"], other["weights"])
    assert one["finite"]
    heads = {n for n in one["wanted"] if ".seg_layers." in n}
    assert len(heads) == (8 if deep else 2)
    assert any(n.startswith("encoder.") for n in one["wanted"]) == (name != "SwinFrozenTrainer")


def test_a_parameter_without_gradient_would_be_noticed(found):
    assert all(
        "parameters that were not used in producing loss" in part["control"] for part in found
    )


def as_validating_rank(rank: int, folder: Path) -> None:
    """`-num_gpus 2 --val` of a fold with one case: the second process has nothing to predict."""
    torch.set_num_threads(1)
    td.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet_to_validate",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=20),
    )
    trainer = synthetic_trainer("SwinSSLTrainer", synthetic_plans({"epochs": 1}))
    trainer.device, trainer.is_ddp = torch.device("cpu"), False
    trainer.initialize()
    trainer.network = DistributedDataParallel(trainer.network)

    def validate(*_: object) -> None:
        if rank == 0:
            with torch.no_grad():
                trainer.network(batch(trainer)["data"])
        td.barrier()

    nnUNetTrainer.perform_actual_validation = validate
    trainer.perform_actual_validation()
    td.destroy_process_group()


def test_a_validation_does_not_wait_for_a_process_without_a_case(nnunet_env, monkeypatch, tmp_path):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path / "ssl")))
    mp.spawn(as_validating_rank, args=(tmp_path,), nprocs=WORLD)


def test_a_training_has_its_products_from_onednn(ready, monkeypatch):
    found = []

    def record(*_):
        found.append(torch.get_float32_matmul_precision())

    for name in ("run_training", "perform_actual_validation"):
        monkeypatch.setattr(nnUNetTrainer, name, record)
    trainer = ready("SwinSSLTrainer")
    trainer.run_training()
    trainer.perform_actual_validation()
    assert found == ["medium", "medium"]
    assert torch.get_float32_matmul_precision() == "highest"
