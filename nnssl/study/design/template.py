"""What `nnssl_study init` writes: a commented description."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".yaml", ".yml")
TEMPLATE = """\
# A study of nnssl_study: arms x tasks x budgets x seeds. Every run is a training by nnU-Net.
#   nnssl_study run THIS_FILE --dry-run      what would be done, and what it costs
#   nnssl_study run THIS_FILE                does what is missing
#   nnssl_study report THIS_FILE             tables, plots, one HTML page
# Relative paths are relative to this file. The study writes into a folder named after this
# file, next to it (folder: elsewhere), and into nnU-Net's three folders.

name: few-shot

# How a training starts. The arm called scratch is what all others are compared with.
arms:
  # random; encoder and intensities as the first pretrained arm's
  - {name: scratch, start: scratch}
  - {name: smit, start: checkpoint, checkpoint: path/to/smit/checkpoint_final.pth}
  # Pretrain here: a method of nnssl_pretrain on folders of scans or on the images of nnU-Net
  # datasets. Any of its flags can be given under options. Restrict an arm with tasks: [organs] or
  # budgets: [2, 5].
  # - name: byol
  #   start: pretrain
  #   method: byol
  #   datasets: [503]                        # or scans: [path/to/folder]
  #   encoder: smit                          # the preset
  #   options: {dims: 2, epochs: 5}
  #   tasks: [heart]
  # - {name: nnunet, start: default}         # nnU-Net's own network, as many iterations
  # - {name: resenc-l, start: default, plans: nnUNetResEncUNetLPlans}
  # - {name: primus-m, start: default, trainer: DefaultPrimusMTrainer, tasks: [organs]}  # 3D only
  # - {name: mae, start: elsewhere, trainer: PretrainedTrainer, plans: ptPlans_MAE, tasks: [organs]}
  # - {name: imagenet, start: imagenet, weights: path/to/swin.pth, tasks: [heart]}  # 2d
  # - {name: supervised, start: supervised, dataset: 501, configuration: 3d_fullres}  # labels

# nnU-Net datasets. The validation cases are those of the given fold, for every budget and seed.
tasks:
  - name: organs
    dataset: 501
    configuration: 3d_fullres
    fold: 0
    modality: CT                             # for the report: the drop from CT to MRI
    tolerance: 2.0                           # mm, of the surface Dice
    # plans: coarse                          # others than nnUNetPlans, for another spacing
  # - name: heart
  #   dataset: 503
  #   configuration: 2d
  #   modality: MR
  #   subject: "(patient[0-9]+)_"            # cases of one patient stay together

# Numbers of training cases, or all. Smaller ones are subsets of larger ones, and hold every label.
budgets: [2, 5, 10, all]

# Each seed draws other subsets. Instead: folds: [0, 1, 2, 3, 4], for other validation cases too.
seeds: [0, 1, 2]

# The flags of nnssl_plan, without dashes; what is left out takes its default. Tasks and arms may
# have a recipe too, which overrides this one. trainer: one of ours for the pretrained arms (default
# SwinSSLTrainer).
recipe:
  epochs: 100
  iterations: 100
  decoder: swinunetr

device: cuda

# For --executor slurm: what submitit is to ask for, for each run.
# slurm: {slurm_partition: gpu, timeout_min: 1440, gpus_per_node: 1, cpus_per_task: 12, mem_gb: 64}
"""


def write_description(path: Path) -> None:
    """Write the commented description. Raises FileExistsError rather than overwriting one, and
    ValueError for a name by which `nnssl_study report` would not know a description.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"the name of a description ends in {' or '.join(SUFFIXES)}, got {path}; type: "
            f"nnssl_study init {path}.yaml"
        )
    if path.exists():
        raise FileExistsError(f"{path} already exists; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE, encoding="utf-8")
