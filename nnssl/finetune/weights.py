"""Load the weights that a training starts from, and report them in its log."""

from __future__ import annotations

from typing import cast

from torch.nn.parallel import DistributedDataParallel

from nnssl import checkpoint, weights
from nnssl.finetune.architecture import BY_INTENSITIES, INFO, as_read, describe_map, is_ct
from nnssl.finetune.checkpoint_choice import NoCheckpointError, OriginError, choose
from nnssl.finetune.plans_file import opened
from nnssl.finetune.strides import steps_in_words
from nnssl.network.swin_unetr import SwinUNETR
from nnssl.types import Shape


def load_named_checkpoint(network: SwinUNETR, plans: dict, labels: int = 0) -> list[str]:
    """Load the encoder that the resolved `plans` name; lines for the log. The counts go into the
    plans.

    labels: how many of the network's last input channels are a cascade's labels
    (`cascaded_labels`). Raises NoCheckpointError, CheckpointError, OriginError, TransferError; then
    nothing was loaded.
    """
    info = plans.get(INFO, {})
    loaded = _named_checkpoint(info)
    _require_same_dimensions(loaded, network, is_ct(plans))
    done = checkpoint.transfer(loaded, network.encoder, labels)
    info.update(sha256=loaded.sha256, matched=done.matched, total=done.total)
    return [
        f"Pretrained weights: {loaded.path} (method {loaded.method}, sha256 {loaded.sha256})",
        f"  named by {info.get('named_by', 'the plans')}",
        *weights.about(loaded.sha256, is_ct(plans)),
        f"  {done.matched} of {done.total} encoder tensors matched",
        *_explanations(done),
        *_load_decoder(loaded, network, info, labels),
    ]


def _explanations(done: checkpoint.Transfer, prefix: str = "") -> list[str]:
    """A line for the log per tensor that is not loaded as it is in the file."""
    return [f"  {prefix}{name}: {reason}" for name, reason in done.explained.items()]


def _named_checkpoint(info: dict) -> checkpoint.Checkpoint:
    if not info.get("checkpoint_path"):
        raise NoCheckpointError(
            "these plans name our network but no checkpoint: train with -tr SwinScratchTrainer, "
            "or create plans from a checkpoint: nnssl_plan -d DATASET -c PATH_TO_CHECKPOINT "
            "--name NAME"
        )
    return opened(choose(info))


def _require_same_dimensions(
    loaded: checkpoint.Checkpoint, network: SwinUNETR, of_ct: bool
) -> None:
    theirs, ours = loaded.encoder_config.spatial_dims, network.encoder.config.spatial_dims
    if theirs != ours:
        raise OriginError(
            f"{loaded.path} was pretrained in {theirs}D, but this configuration is {ours}D: train "
            f"a {theirs}D configuration, pretrain in {ours}D (nnssl_pretrain --dims {ours}), use "
            "released weights (nnssl_plan -d DATASET -c "
            f"{weights.default(ours, of_ct).name} --name NAME, and train with -p NAME), or -tr "
            "SwinScratchTrainer"
        )


def _load_decoder(
    loaded: checkpoint.Checkpoint, network: SwinUNETR, info: dict, labels: int
) -> list[str]:
    """Load all of the decoder but its heads where it was pretrained as well; lines for the log.

    Raises TransferError, where it is the decoder of these plans and does not fit.
    """
    if loaded.decoder is None:
        return []
    if difference := _other_decoder(network, loaded.decoder, loaded.encoder_config.steps):
        return [f"  the decoder starts from random weights: {difference}"]
    channels = network.encoder.config.in_channels - labels
    done = checkpoint.transfer_decoder(loaded, network.decoder, channels, labels)
    info["decoder_matched"] = done.matched
    return [
        f"  {done.matched} of {done.total} tensors of the decoder {loaded.decoder['name']} "
        "matched; its heads are reinitialised",
        *_explanations(done, "decoder."),
    ]


def _other_decoder(network: SwinUNETR, pretrained: dict, steps: tuple[Shape, ...]) -> str | None:
    """How the network's decoder differs from the pretrained one, whose encoder had these `steps`;
    None where it is the same.
    """
    if network.decoder_options != pretrained:
        ours = network.decoder_options["name"]
        return f"the plans have {ours}, the checkpoint has {pretrained['name']}"
    here = network.encoder.config.steps
    if here == steps:
        return None
    ours, theirs = (steps_in_words(each) or "2 everywhere" for each in (here, steps))
    return f"its steps are {ours}, but were {theirs} in the pretraining"


def random_start(plans: dict) -> list[str]:
    """Lines for the log of a training that loads nothing."""
    named = plans.get(INFO, {}).get("checkpoint_path")
    source = (
        f"as in {named}, without its weights"
        if named
        else "as in the plans, which name no checkpoint"
    )
    return [f"Random start: encoder and intensities {source}"]


def intensities(resolved: dict, info: dict) -> list[str]:
    """Lines for the log: what becomes of the image's values, and where the pretraining saw another
    spacing.
    """
    arguments = resolved["architecture"]["arch_kwargs"]
    lines = describe_map(arguments.get("intensity"), info)
    others = sorted(set(resolved["normalization_schemes"]) - {BY_INTENSITIES})
    if info.get("hu") and others:
        lines.append(
            f"  channels of {', '.join(others)} pass unchanged, although the pretraining was on HU"
        )
    if info.get("spacing"):
        lines.append(_spacings(resolved["spacing"], arguments.get("axes"), info["spacing"]))
    return lines


def _spacings(spacing: list[float], axes: list[int] | None, pretrained: list[float]) -> str:
    here = as_read(spacing, axes or range(len(spacing)))
    return (
        f"Spacing, in the order of the files' axes: {_round(here)} mm here, "
        f"{_round(pretrained)} mm in the pretraining"
    )


def freeze(network: SwinUNETR) -> None:
    """No gradient for the encoder. Before DDP wraps the network, which waits for those that it
    finds then.
    """
    network.encoder.requires_grad_(False)


def unwrap(network: object) -> SwinUNETR:
    """The network itself, out of what DDP and torch.compile wrap it in."""
    network = getattr(network, "module", network)
    # neither of the two says what it wraps
    return cast("SwinUNETR", getattr(network, "_orig_mod", network))


def stop_broadcasts(network: object) -> None:
    """Let each process of DDP predict by itself, until the next step of a training.

    The first forward pass of DDP sends the buffers of the network to all processes, and waits for
    those that have nothing to predict. DDP itself sends none after a pass without gradients.
    """
    if isinstance(network, DistributedDataParallel):
        network.require_forward_param_sync = False


def _round(numbers: list[float]) -> list[float]:
    return [round(number, 2) for number in numbers]
