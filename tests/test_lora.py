"""SwinLoRATrainer: what learns, what is saved, and that nnU-Net predicts with it as with any
network.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic_checkpoints import pretrained
from synthetic_trainers import DATASET_JSON, batch, synthetic_plans, synthetic_trainer, train_epoch

from nnssl import checkpoint, files, finetune
from nnssl.finetune import checkpoint_choice
from nnssl.finetune.lora import MATRICES, STATE, LowRank
from nnssl.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ready(nnunet_env, monkeypatch, tmp_path):
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path / "ssl")))
    monkeypatch.setattr(finetune.plans_file, "DECODER", "light")

    def make(name: str = "SwinLoRATrainer", **recipe):
        trainer = synthetic_trainer(name, synthetic_plans({"iterations": 2, "lr": 1e-2, **recipe}))
        trainer.initialize()
        return trainer

    return make


def plain(trainer, weights: dict) -> torch.nn.Module:
    """The network as nnU-Net builds it for prediction, with `weights`."""
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, trainer.num_input_channels, 3, False
    )
    network.load_state_dict(weights)
    return network.eval()


def test_at_the_start_it_is_the_pretrained_network_bit_by_bit(ready):
    trainer, image = ready(), torch.randn(1, 1, 16, 16, 16)
    loaded = checkpoint.load(trainer.plans_manager.plans["pretrain_info"]["checkpoint_path"])
    saved = trainer.network.state_dict()
    for name in (f"encoder.layers1.0.blocks.0.{matrix}.weight" for matrix in MATRICES):
        assert torch.equal(saved[name], loaded.weights[name]), name
    other = plain(trainer, saved)
    for one, two in zip(trainer.network.encoder(image), other.encoder(image), strict=True):
        assert torch.equal(one, two)
    assert "LoRA of rank 8, alpha 16: of the encoder's" in Path(trainer.log_file).read_text()


def test_matrices_stay_and_factors_and_all_that_is_small_learn(ready):
    trainer = ready(epochs=2)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    train_epoch(trainer, 0, steps=2)
    same = {n for n, p in trainer.network.named_parameters() if torch.equal(p, before[n])}
    stay = {n for n in before if n.endswith("parametrizations.weight.original")}
    stay |= {f"encoder.layers{i}.0.downsample.reduction.weight" for i in (1, 2, 3, 4)}
    assert len(stay) == 4 * len(MATRICES) + 4
    # one token is all that the last stage has here, and its softmax has no gradient
    idle = {n for n in same - stay if "layers4" in n or n.endswith("relative_position_bias_table")}
    assert same == stay | idle
    frozen = {n for n, p in trainer.network.named_parameters() if not p.requires_grad}
    assert frozen == stay


def test_what_is_saved_is_a_plain_network_with_the_sums_in_it(ready, tmp_path):
    trainer, image = ready(epochs=2, lora_rank=2), torch.randn(1, 1, 16, 16, 16)
    train_epoch(trainer, 0, steps=3)
    trainer.save_checkpoint(str(tmp_path / "saved.pth"))
    saved = torch.load(tmp_path / "saved.pth", weights_only=False)
    names = ready("SwinSSLTrainer").network.state_dict().keys()
    assert saved["network_weights"].keys() == names
    trainer.average.use()
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        wanted = trainer.network.eval()(image)
        assert torch.equal(plain(trainer, saved["network_weights"])(image), wanted)
    start, name = checkpoint_choice.choose({}).path, "encoder.layers1.0.blocks.0.attn.qkv.weight"
    difference = saved["network_weights"][name] - checkpoint.load(start).weights[name]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2


def test_nnunets_own_predictor_needs_nothing_of_it(ready, tmp_path, monkeypatch):
    """`initialize_from_trained_model_folder` is how `nnUNetv2_predict` finds and loads a model."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = ready(epochs=2)
    train_epoch(trainer, 0, steps=3)
    model, fold = Path(trainer.output_folder_base), Path(trainer.output_folder)
    files.write_json(model / "plans.json", trainer.plans_manager.plans)
    files.write_json(model / "dataset.json", DATASET_JSON)
    trainer.save_checkpoint(str(fold / "checkpoint_final.pth"))
    checkpoint_choice.choose({}).path.unlink()
    monkeypatch.delenv(checkpoint_choice.VARIABLE)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    image = torch.randn(1, 20, 16, 16)
    logits = predictor.predict_logits_from_preprocessed_data(image)
    assert logits.shape == (3, 20, 16, 16)
    trainer.average.use()
    trainer.set_deep_supervision_enabled(False)
    predictor.network = trainer.network.eval()
    predictor.list_of_parameters = [trainer.network.state_dict()]
    with torch.inference_mode():
        wanted = predictor.predict_sliding_window_return_logits(image)
    torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)


def test_plain_weights_can_be_loaded_and_begin_anew(ready):
    """As by `-pretrained_weights`: the sums of one training are the matrices of the next."""
    one, other = ready(epochs=2), ready(epochs=2)
    train_epoch(one, 0, steps=2)
    given = {name: t.clone() for name, t in one.network.state_dict().items()}
    train_epoch(other, 0, steps=1)
    other.network.load_state_dict(given)
    for name, tensor in other.network.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    factors = [m for m in other.network.modules() if isinstance(m, LowRank)]
    assert len(factors) == 4 * len(MATRICES)
    assert all(not m.b.any() for m in factors)


def test_only_the_factors_lie_in_the_optimisers_state(ready):
    trainer = ready(epochs=2)
    train_epoch(trainer, 0, steps=1)
    kept = trainer.optimizer.state_dict()[STATE]
    assert len(kept) == 3 * 4 * len(MATRICES)
    adapted = [p for p in trainer.network.parameters() if p.requires_grad]
    assert len(trainer.optimizer.state) == len(adapted)


def test_a_resumed_model_keeps_the_rank_and_scale_that_it_was_trained_with(ready, tmp_path):
    """Plans that are made again without a flag have its default: the sums were others."""
    trainer = ready(epochs=2, lora_rank=2, lora_alpha=3.0)
    train_epoch(trainer, 0, steps=2)
    trainer.save_checkpoint(str(tmp_path / "saved.pth"))
    again = synthetic_trainer("SwinLoRATrainer", synthetic_plans({"iterations": 2, "epochs": 4}))
    again.load_checkpoint(str(tmp_path / "saved.pth"))
    trainer.average.use()
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    assert (again.recipe.lora_rank, again.recipe.lora_alpha, again.num_epochs) == (2, 3.0, 4)


def test_the_rank_and_its_scale_come_from_the_recipe(ready):
    trainer = ready(lora_rank=2, lora_alpha=3.0)
    factors = [m for m in trainer.network.modules() if isinstance(m, LowRank)]
    assert {(m.a.shape[0], m.b.shape[1], m.scale) for m in factors} == {(2, 2, 1.5)}
    with pytest.raises(ValueError, match="lora_rank must be at least 1, got 0"):
        Recipe(lora_rank=0)


def test_a_compiler_sees_one_graph_of_it(ready):
    trainer = ready()
    network = trainer.network
    explained = torch._dynamo.explain(network.encoder)(batch(trainer)["data"])
    assert (
        explained.graph_break_count
        == torch._dynamo.explain(ready("SwinSSLTrainer").network.encoder)(
            batch(trainer)["data"]
        ).graph_break_count
    )
