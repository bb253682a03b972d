"""What a fine-tuning is for, at its smallest: one batch is learnt by heart, with every decoder,
from a random start.
"""

from __future__ import annotations

import pytest
import torch
from micro import ENCODER
from synthetic_plans import nnunet_plans

from nnssl import finetune
from nnssl.finetune.architecture import architecture
from nnssl.network.decoders import DECODERS
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")
# slices: the same code as volumes, in a tenth of the time
SIZE, CLASSES, ITERATIONS = (32, 32), 4, 100


def organs() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [2 1 Y X] with three discs each, hardly brighter than what is around them, and labels
    [2 Y X].
    """
    generator = torch.Generator().manual_seed(0)
    positions = torch.stack(torch.meshgrid(*(torch.arange(n) for n in SIZE), indexing="ij"), dim=-1)
    images, labels = (
        torch.randn(2, 1, *SIZE, generator=generator) / 2,
        torch.zeros(2, *SIZE, dtype=torch.long),
    )
    for image, label in zip(images, labels, strict=True):
        for number, x in enumerate((6, 16, 26), start=1):
            centre = torch.tensor([int(torch.randint(6, 26, (1,), generator=generator)), x])
            disc = (positions - centre).square().sum(-1) < 12
            label[disc] = number
            image[0, disc] += 1
    return images, labels


def network_for(decoder: str) -> SwinUNETR:
    """As new plans name it, at the start of a training."""
    torch.manual_seed(0)
    plans = nnunet_plans()
    resolved = finetune.resolve(plans, "2d") | {"patch_size": list(SIZE), "spacing": [1.0, 1.0]}
    resolved["architecture"] = architecture(plans, resolved, ENCODER, decoder, None)
    network = finetune.build_network(resolved, 1, CLASSES, True)
    finetune.start_heads(network, regions=False)
    return network


def dice(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Of all foreground classes, the worst one."""
    found = logits.argmax(1)
    return min(
        float(2 * ((found == c) & (labels == c)).sum() / ((found == c).sum() + (labels == c).sum()))
        for c in range(1, CLASSES)
    )


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_is_learnt_by_heart_within_100_iterations(decoder):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    network, (images, labels) = network_for(decoder), organs()
    if finetune.needs_moments(network, {}):
        finetune.calibrate_norms(network, [images])
    recipe = Recipe(epochs=1, iterations=ITERATIONS, lr=2e-3)
    optimizer, schedule = finetune.optimise(network, recipe, torch.device("cpu"), pretrained=False)
    average = finetune.Average(network, optimizer, recipe.average)
    options = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DeepSupervisionWrapper(
        DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss),
        finetune.deep_supervision_weights(4),
    )
    schedule.step(0)
    for _ in range(ITERATIONS):
        optimizer.zero_grad()
        outputs = network(images)
        targets = [
            torch.nn.functional.interpolate(labels[:, None].float(), o.shape[2:]) for o in outputs
        ]
        loss(outputs, targets).backward()
        optimizer.step()
    with torch.no_grad():
        assert dice(network.eval()(images)[0], labels) > 0.9
        average.use()
        assert dice(network(images)[0], labels) > 0.9
