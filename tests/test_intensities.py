"""Raw HU through nnU-Net's own normalisation and our network: the encoder sees what it saw in the
pretraining.

Every voxel that nnU-Net leaves as it was is seen as the pretraining's normalisation of its HU, to
float precision. nnU-Net clips CT to percentiles of the dataset's foreground before our network gets
it: what it clipped, the encoder sees at that bound. Where they lie outside of the pretraining's own
clip range, this makes no difference at all.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic_checkpoints import HU, pretrained
from synthetic_plans import nnunet_plans

from nnssl import finetune
from nnssl.finetune import checkpoint_choice
from nnssl.hu import HUPolicy

POLICY = HUPolicy.from_dict(HU)  # clips to [-900, 1100]
# beyond all clip ranges
RAW = np.linspace(-1500, 4000, 16**3, dtype=np.float32).reshape(1, 1, 16, 16, 16)
CT = {
    "wider than the pretraining": {
        "percentile_00_5": -1024.0,
        "percentile_99_5": 3071.0,
        "mean": -200.0,
        "std": 512.5,
    },
    "the same": {"percentile_00_5": -900.0, "percentile_99_5": 1100.0, "mean": -40.0, "std": 310.0},
    "soft tissue alone": {
        "percentile_00_5": -58.0,
        "percentile_99_5": 302.0,
        "mean": 101.3,
        "std": 76.9,
    },
    "lungs": {"percentile_00_5": -1000.0, "percentile_99_5": 71.0, "mean": -631.7, "std": 301.2},
    "bone": {"percentile_00_5": 150.0, "percentile_99_5": 2100.0, "mean": 700.0, "std": 400.0},
    "of hardly any spread": {
        "percentile_00_5": 39.0,
        "percentile_99_5": 41.0,
        "mean": 40.0,
        "std": 0.25,
    },
}
# Twice rounded numbers of up to 4000 HU, over the sd: some units in the last place.
EXACT = {"rtol": 0, "atol": 8 * np.finfo(np.float32).eps * 4000 / HU["sd"]}


@pytest.fixture
def encoder_input(nnunet_env, monkeypatch, tmp_path):
    """A function: plans and nnU-Net's image to what reaches the encoder's first layer."""
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path)))
    monkeypatch.setattr(finetune.plans_file, "DECODER", "light")

    def run(plans: dict, image: torch.Tensor, configuration: str = "3d_fullres") -> torch.Tensor:
        finetune.resolve_architecture(plans, configuration)
        network = finetune.build_network(
            finetune.resolve(plans, configuration), image.shape[1], 2, deep_supervision=False
        )
        caught = []
        network.encoder.patch_embed.register_forward_pre_hook(
            lambda _, inputs: caught.append(inputs[0])
        )
        with torch.no_grad():
            network(image)
        return caught[0]

    return run


def nnunets(name: str, values: np.ndarray, properties: dict) -> torch.Tensor:
    """Through nnU-Net's own class, as its preprocessing calls it."""
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    scheme = getattr(schemes, name)(use_mask_for_norm=False, intensityproperties=properties)
    return torch.from_numpy(
        np.stack([scheme.run(channel.copy()) for channel in values[:, 0]])[:, None]
    )


def ct_plans(properties: dict, schemes: tuple[str, ...] = ("CTNormalization",)) -> dict:
    channels = {str(channel): properties for channel in range(len(schemes))}
    return nnunet_plans(schemes) | {"foreground_intensity_properties_per_channel": channels}


@pytest.mark.parametrize("dataset", CT)
def test_the_encoder_sees_the_pretrainings_hu_whatever_the_dataset(encoder_input, dataset):
    properties = CT[dataset]
    got = encoder_input(ct_plans(properties), nnunets("CTNormalization", RAW, properties)).numpy()
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    np.testing.assert_allclose(got, POLICY.normalise(RAW.clip(low, high)), **EXACT)
    kept = np.equal(RAW, RAW.clip(low, high))
    assert kept.any()
    np.testing.assert_allclose(got[kept], POLICY.normalise(RAW[kept]), **EXACT)
    if low <= POLICY.low and high >= POLICY.high:
        np.testing.assert_allclose(got, POLICY.normalise(RAW), **EXACT)
    assert got.min() >= np.float32((POLICY.low - POLICY.mean) / POLICY.std)
    assert got.max() <= np.float32((POLICY.high - POLICY.mean) / POLICY.std)


@pytest.mark.parametrize("dataset", CT)
def test_the_encoder_sees_a_piecewise_policy_whatever_the_dataset(
    encoder_input, dataset, monkeypatch, tmp_path
):
    bent = HUPolicy(
        -1000, 3000, 823.59, 674.9, ((-500, -571.4), (-150, -88.6), (100, 1572.5), (1000, 2556.1))
    )
    monkeypatch.setenv(checkpoint_choice.VARIABLE, str(pretrained(tmp_path, hu=bent.to_dict())))
    properties = CT[dataset]
    got = encoder_input(ct_plans(properties), nnunets("CTNormalization", RAW, properties)).numpy()
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    np.testing.assert_allclose(got, bent.normalise(RAW.clip(low, high)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "scheme", ["ZScoreNormalization", "RescaleTo01Normalization", "NoNormalization"]
)
def test_other_images_pass_bit_by_bit(encoder_input, scheme):
    properties = CT["wider than the pretraining"]
    image = nnunets(scheme, 3 * RAW + 7, properties)
    assert torch.equal(encoder_input(ct_plans(properties, (scheme,)), image), image)


def test_channels_of_mixed_kind_go_each_its_own_way(encoder_input):
    properties = CT["soft tissue alone"]
    schemes = ("ZScoreNormalization", "CTNormalization", "NoNormalization")
    image = torch.cat([nnunets(scheme, RAW, properties) for scheme in schemes], dim=1)
    got = encoder_input(ct_plans(properties, schemes), image)
    assert torch.equal(got[:, ::2], image[:, ::2])
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    np.testing.assert_allclose(got[:, 1:2].numpy(), POLICY.normalise(RAW.clip(low, high)), **EXACT)


def test_a_cascades_labels_pass_beside_the_ct(encoder_input):
    properties = CT["lungs"]
    labels = torch.randint(0, 2, (1, 3, 16, 16, 16)).float()
    image = torch.cat([nnunets("CTNormalization", RAW, properties), labels], dim=1)
    got = encoder_input(ct_plans(properties), image, "3d_cascade_fullres")
    assert torch.equal(got[:, 1:], labels)
    low, high = properties["percentile_00_5"], properties["percentile_99_5"]
    np.testing.assert_allclose(got[:, :1].numpy(), POLICY.normalise(RAW.clip(low, high)), **EXACT)
