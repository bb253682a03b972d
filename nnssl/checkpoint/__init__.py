"""The hand-over from pretraining to nnU-Net: tensors and a JSON-able header, loaded strictly.

    {"format_version": 1, "header": {...}, "network_weights": {"encoder.…": tensor},
     "nnssl_adaptation_plan": {...}, "citations": [...]}

A file holds tensors and plain Python types only and is read with `weights_only=True`, so that
nothing in it is executed. `checkpoint_latest.pth` adds "training_state", which only the training
loop reads.

safe       files of safetensors, the same content
plain      files of PyTorch, read without executing anything
header     what a header may say, and that the tensors are those of the encoder that it names
file       pack, write, read, load
transfer   into an encoder, every tensor or none
describe   what `nnssl_inspect` prints
card       a folder for Hugging Face: weights, config.json and a model card
"""

from nnssl.checkpoint.card import publish
from nnssl.checkpoint.describe import describe, describe_hu, to_json
from nnssl.checkpoint.file import Checkpoint, halved, load, pack, read, write
from nnssl.checkpoint.header import FORMAT_VERSION, KEYS, PREFIX
from nnssl.checkpoint.plain import CheckpointError, read_plain, why_inflated, why_no_weights
from nnssl.checkpoint.transfer import (
    Transfer,
    TransferError,
    differences,
    transfer,
    transfer_decoder,
)

__all__ = [
    "FORMAT_VERSION",
    "KEYS",
    "PREFIX",
    "Checkpoint",
    "CheckpointError",
    "Transfer",
    "TransferError",
    "describe",
    "describe_hu",
    "differences",
    "halved",
    "load",
    "pack",
    "publish",
    "read",
    "read_plain",
    "to_json",
    "transfer",
    "transfer_decoder",
    "why_inflated",
    "why_no_weights",
    "write",
]
