"""The network's map from nnU-Net's values to a piecewise linear HU policy: numbers, state_dict,
export.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from micro import ENCODER

from nnssl.encoder.swin import Swin
from nnssl.finetune.architecture import intensity_map
from nnssl.hu import HUPolicy
from nnssl.network.swin_unetr import Intensity, SwinUNETR

HU = HUPolicy(low=-900.0, high=1100.0, mean=-40.0, std=310.0)
BENT = HUPolicy(
    -1000, 3000, 823.59, 674.9, ((-500, -571.4), (-150, -88.6), (100, 1572.5), (1000, 2556.1))
)


@pytest.mark.parametrize("std", [0.25, 143.9, 512.0])
def test_a_piecewise_policy_is_applied_to_nnunets_values_by_channel(std):
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    properties = {"mean": 87.3, "std": std, "percentile_00_5": -1100.0, "percentile_99_5": 3200.0}
    hu = np.linspace(-1200, 3300, 4 * 16**3, dtype=np.float32).reshape(4, 1, 16, 16, 16)
    other = torch.randn(hu.shape)
    scheme = CTNormalization(use_mask_for_norm=False, intensityproperties=properties)
    image = torch.cat([other, torch.from_numpy(scheme.run(hu.copy())), other], dim=1)
    entries = intensity_map(["ZScoreNormalization", "CTNormalization"], {"1": properties}, BENT)
    entries = json.loads(json.dumps(entries))  # as they come from plans.json
    mapped = Intensity(3, **entries)(image)
    np.testing.assert_allclose(mapped[:, 1], BENT.normalise(hu[:, 0]), atol=1e-5)
    assert torch.equal(mapped[:, ::2], image[:, ::2])


def test_bends_travel_in_the_state_dict_and_old_ones_stay_straight():
    ct = {"0": {"mean": 10.0, "std": 20.0}}
    bent = intensity_map(["CTNormalization"], ct, BENT)
    straight = intensity_map(["CTNormalization"], ct, HU)
    # as in plans from before there were knots
    assert set(straight) == {"scale", "shift", "low", "high"}
    image = 30 * torch.randn(1, 1, 8, 8, 8)
    for source, target in ((bent, None), (bent, straight), (straight, bent)):
        trained, other = Intensity(1, **source), Intensity(1, **(target or {}))
        other.load_state_dict(trained.state_dict())
        assert torch.equal(other(image), trained(image))
        assert other.state_dict().keys() == trained.state_dict().keys()
    old = Intensity(1, **straight)
    assert list(old.state_dict()) == ["scale", "shift", "low", "high"]
    scale, shift, low, high = old.state_dict().values()
    assert torch.equal(old(image), torch.clamp(image * scale + shift, low, high))
    network = SwinUNETR(1, 2, encoder=ENCODER.to_dict(), decoder="light", intensity=bent)
    # of an encoder alone: nothing to say
    network.encoder.load_state_dict(Swin(ENCODER).state_dict())
    assert network.encoder.intensity.gain.any()


def test_the_map_can_be_exported():
    intensity = Intensity(
        2, **intensity_map(["CTNormalization"], {"0": {"mean": 10.0, "std": 20.0}}, BENT)
    )
    image = 30 * torch.randn(1, 2, 8, 8, 8)
    exported = torch.export.export(intensity, (image,)).module()
    assert torch.equal(exported(image), intensity(image))
