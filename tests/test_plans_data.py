"""What preprocessed data depend on: each configuration has its own, or those of one that would
preprocess the same.
"""

from __future__ import annotations

import pytest
from synthetic_plans import early, nnunet_plans

from nnssl import files
from nnssl.finetune.plans_data import (
    ChangedPlansError,
    data_settings,
    require_data_of_model,
    require_same_data,
)
from nnssl.finetune.plans_file import resolve
from nnssl.recipe import RECIPE


def own_plans(**configurations: dict) -> dict:
    """Plans of ours, to which a user has added `configurations`."""
    plans = nnunet_plans() | {"plans_name": "own", RECIPE: {}}
    plans["configurations"] |= configurations
    return plans


def test_a_configuration_of_other_data_under_the_same_name_is_not_trained(tmp_path):
    """Whichever was preprocessed last would be trained on."""
    thick = {"inherits_from": "3d_fullres", "spacing": [5.0, 2.0, 2.0]}
    plans = own_plans(thick=thick, more={"inherits_from": "3d_fullres", "batch_size": 7})
    require_same_data(tmp_path, plans, "3d_fullres")
    require_same_data(tmp_path, plans, "more")
    said = r'thick and 3d_.* \(spacing\).*"data_identifier": "own_thick_\w+" in its entry'
    with pytest.raises(ChangedPlansError, match=said):
        require_same_data(tmp_path, plans, "thick")
    thick["data_identifier"] = "thick"
    require_same_data(tmp_path, plans, "thick")


@pytest.mark.parametrize(
    "entry",
    [
        {"data_identifier": "x", "spacing": [1, 1, 1], "patch_size": [64, 64, 64]},
        {"data_identifier": "nnUNetPlans_3d", "spacing": [1, 1, 1]},  # no network
        {"data_identifier": "nnUNetPlans_3d", "inherits_from": "gone"},
        {"data_identifier": "nnUNetPlans_3d", "architecture": {}},  # no spacing
        {"data_identifier": "nnUNetPlans_3d", "architecture": {}, "spacing": None},
        {"inherits_from": "nnUNetPlans_3d"},
    ],
)
@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans format")
def test_other_files_in_the_folder_stop_no_training(tmp_path, entry):
    files.write_json(tmp_path / "other.json", {"configurations": {"onemmiso": entry}})
    require_same_data(tmp_path, own_plans(), "3d_fullres")
    require_same_data(tmp_path, own_plans(other=entry), "3d_fullres")


def test_only_what_names_the_data_is_compared(tmp_path):
    """Other configurations of nnU-Net's plans may be of networks that are not known here."""
    theirs = nnunet_plans()
    theirs["configurations"]["unknown"] = {"patch_size": [8, 8, 8]}
    files.write_json(tmp_path / "nnUNetPlans.json", theirs)
    plans = own_plans()
    require_same_data(tmp_path, plans, "3d_fullres")
    plans["configurations"]["3d_lowres"]["spacing"] = [2.0, 2.0, 2.0]
    with pytest.raises(ChangedPlansError, match="spacing"):
        require_same_data(tmp_path, plans, "3d_lowres")


def test_data_of_another_reader_of_images_are_refused(tmp_path):
    """Plans made before readers were compared, or by hand, say none: they agree with any."""
    theirs, plans = nnunet_plans(), own_plans()
    for said, refused in ((None, False), ("SimpleITKIO", False), ("NibabelIOWithReorient", True)):
        plans["image_reader_writer"] = "SimpleITKIO"
        theirs |= {"image_reader_writer": said} if said else {}
        files.write_json(tmp_path / "nnUNetPlans.json", theirs)
        if refused:
            with pytest.raises(ChangedPlansError, match="again since: image_reader_writer changed"):
                require_same_data(tmp_path, plans, "3d_fullres")
            with pytest.raises(ChangedPlansError, match="trained on: image_reader_writer changed"):
                require_data_of_model(plans, "3d_fullres", theirs)
        else:
            require_same_data(tmp_path, plans, "3d_fullres")
            require_data_of_model(plans, "3d_fullres", theirs)


def test_the_intensities_of_early_plans_count():
    plans = nnunet_plans()
    settings = data_settings(plans, resolve(plans, "3d_fullres"))
    assert settings["intensities"]["0"]
    assert data_settings(early(plans), resolve(plans, "3d_fullres")) == settings
