"""A trained model of nnU-Net's, of any trainer: read by nnU-Net's own predictor."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from nnssl.export import ExportError
from nnssl.finetune import unwrap
from nnssl.types import Shape

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


@dataclass(frozen=True)
class Trained:
    """One fold, and what nnU-Net's `predictor` has read of it."""

    predictor: nnUNetPredictor
    plans: PlansManager
    configuration: ConfigurationManager
    labels: LabelManager
    dataset: dict  # dataset.json
    network: nn.Module  # on the CPU, in evaluation
    checkpoint: Path
    fold: str
    channels: int  # of the network's input; a cascade's previous labels among them

    @property
    def patch(self) -> Shape:
        """Voxels, in the network's axes."""
        return tuple(self.configuration.patch_size)


def load_model_folder(model: Path, fold: str, checkpoint: str) -> Trained:
    """Raises ExportError where the folder, the fold or the file is not there, or no model.

    nnU-Net reads its model files by pickle, which may execute what it reads.
    """
    model = model.resolve()  # its name is that of trainer, plans and configuration
    path = _existing_checkpoint(model, fold, checkpoint)

    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    predictor = _predictor(model, fold, path)
    # nnU-Net declares as None what it has not read yet
    plans = cast("PlansManager", predictor.plans_manager)
    configuration = cast("ConfigurationManager", predictor.configuration_manager)
    labels = cast("LabelManager", predictor.label_manager)
    dataset = cast("dict", predictor.dataset_json)
    network = unwrap(cast("nn.Module", predictor.network)).eval().requires_grad_(False)
    channels = determine_num_input_channels(plans, configuration, dataset)
    return Trained(predictor, plans, configuration, labels, dataset, network, path, fold, channels)


def _predictor(model: Path, fold: str, path: Path) -> nnUNetPredictor:
    """nnU-Net's own, on the CPU, with all that it reads of the model. Raises ExportError.

    path: of the checkpoint. nnU-Net's reader checks nothing: an empty file, or one that is not its
    own, ends in any error.
    """
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    with redirect_stdout(StringIO()):  # it tells of each module that it looks at for the trainer
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        try:
            predictor.initialize_from_trained_model_folder(str(model), (fold,), path.name)
        except Exception as error:
            raise ExportError(
                f"{path} cannot be read as a model of nnU-Net: {type(error).__name__}: "
                f"{str(error)[:300] or 'the file is empty or truncated'}. Choose a checkpoint that "
                "nnUNetv2_train wrote with -f FOLD and -chk FILE"
            ) from error
    return predictor


def _existing_checkpoint(model: Path, fold: str, checkpoint: str) -> Path:
    """The checkpoint's path."""
    if not (model / "plans.json").is_file():
        raise ExportError(
            f"{model} is not an nnU-Net model folder (no plans.json); give "
            "$nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION"
        )
    if Path(checkpoint).name != checkpoint:
        raise ExportError(
            f"-chk takes the name of a file in the fold, such as checkpoint_final.pth, got "
            f"{checkpoint}; {model.name} has: {_checkpoints(model)}"
        )
    path = model / f"fold_{fold}" / checkpoint
    if not path.is_file():
        raise ExportError(
            f"{path} does not exist; {model.name} has: {_checkpoints(model)}. Choose with -f FOLD "
            "and -chk FILE"
        )
    return path


def _checkpoints(model: Path) -> str:
    there = sorted(path.relative_to(model).as_posix() for path in model.glob("fold_*/*.pth"))
    return ", ".join(there) or "no fold"
