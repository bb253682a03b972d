"""The commands: one thin function each. Every one can be called from Python through the functions
below it.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from nnssl import address, conflict, limits, signals
from nnssl.signals import Interrupted

conflict.refuse()  # again: MIC-DKFZ's `__init__.py` may lie in the place of ours

EXIT_ERROR, EXIT_INTERRUPTED = 1, 75  # 75: sysexits.h's EX_TEMPFAIL, "try again"
EXIT_CTRL_C = 130  # a shell's own, for a command that has nothing to save


def _command(function: Callable[[], int]) -> Callable[[], int]:
    """A command that ends without a traceback on Ctrl-C, and shows names in any terminal."""

    @functools.wraps(function)
    def command() -> int:
        for stream in (sys.stdout, sys.stderr):
            if getattr(stream, "errors", None) == "strict":
                stream.reconfigure(errors="backslashreplace")
        try:
            return function()
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return EXIT_CTRL_C

    return command


@_command
def pretrain() -> int:
    """nnssl_pretrain: raw CT to a pretrained Swin encoder."""
    arguments = sys.argv[1:]
    parser = _pretrain_parser()
    args = parser.parse_args(arguments)
    if args.list:
        from nnssl.bench import listing

        return _report_errors(lambda: print(listing.table()))
    if args.method is None:
        parser.error("say which method with -m; nnssl_pretrain --list shows them")
    if not (args.sources or args.dataset_ids or args.name):
        parser.error("say where the scans are: -i FOLDER, or -d ID of an nnU-Net raw dataset")

    with signals.handled(_leave):
        from nnssl.train.pretrain import Options, processes
        from nnssl.train.pretrain import pretrain as run
    if ended := processes.launch(args.num_gpus, arguments):
        return {"done": 0, "failed": EXIT_ERROR, "stopped": EXIT_INTERRUPTED}[ended]
    options = vars(args)
    for name in ("list", "num_gpus"):
        options.pop(name)
    chosen = options["channels"]
    options["channels"] = None if None in chosen else tuple(sorted(set(chosen)))
    for name in ("crop", "spacing", "clip"):
        options[name] = tuple(options[name]) if options[name] else None
    try:
        return _report_errors(lambda: run(Options(**options)))
    finally:
        atexit.register(_end_undisturbed)  # what is registered last comes first


@_command
def inspect() -> int:
    """nnssl_inspect: what is in a checkpoint, or the line that lets nnU-Net find our trainers."""
    parser = argparse.ArgumentParser(
        prog="nnssl_inspect", description="What is in a checkpoint of nnssl_pretrain."
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=address.named,
        help="a checkpoint_final.pth or checkpoint_latest.pth, hf://owner/repo/file or https://...",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="for programs: all of the header, the file's hash, and the run's manifest beside it",
    )
    parser.add_argument(
        "--nnunet-env",
        action="store_true",
        help="print the line that lets nnU-Net find our trainers; needed after an editable install only",
    )
    args = parser.parse_args()
    if args.nnunet_env:
        from nnssl.hook import trainers_folder

        print(f'export nnUNet_extTrainer="{trainers_folder()}"')
        return 0
    if args.checkpoint is None:
        parser.error("say which checkpoint, or --nnunet-env")

    from nnssl import checkpoint

    describe = checkpoint.to_json if args.json else checkpoint.describe
    return _report_errors(lambda: print(describe(checkpoint.load(args.checkpoint))))


def export() -> int:
    """nnssl_export: a trained network as ONNX and torch.export, with what it expects."""
    from nnssl.export import command

    options = vars(command.parser().parse_args())

    from nnssl.export import Request
    from nnssl.export import export as run

    return _report_errors(lambda: run(Request(**options)))


@_command
def plan() -> int:
    """nnssl_plan: a plans file that carries a checkpoint and a recipe."""
    args = _plan_parser().parse_args()

    from nnssl.finetune.architecture import Recipe
    from nnssl.plans.derive import Request, derive, describe

    options = vars(args)
    recipe = {name: options.pop(name) for name in Recipe.__dataclass_fields__ if name in options}
    options["patch"] = tuple(options["patch"]) if options["patch"] else None
    options["spacing"] = _spacing(options["spacing"])
    request = Request(**options, recipe=recipe)
    return _report_errors(lambda: print(describe(derive(request), request)))


@_command
def convert() -> int:
    """nnssl_convert: weights of others as a checkpoint of ours."""
    options = vars(_convert_parser().parse_args())
    for name in ("hu", "spacing", "crop"):
        options[name] = tuple(options[name]) if options[name] else None

    from nnssl.convert.conversion import Request
    from nnssl.convert.conversion import convert as run

    return _report_errors(lambda: print(run(Request(**options))))


@_command
def embed() -> int:
    """nnssl_embed: features of scans."""
    from nnssl.embed import command

    args = command.parser().parse_args()

    def work() -> None:
        options = command.options(args)
        from nnssl.embed.run import Options
        from nnssl.embed.run import embed as run

        run(Options(**options))

    return _report_errors(work)


@_command
def demo() -> int:
    """nnssl_demo: the whole chain on made CT phantoms."""
    parser = argparse.ArgumentParser(
        prog="nnssl_demo",
        description="Pretraining, planning, training and prediction on CT phantoms that are made on the spot, through "
        "the same commands that you would type. Needs no data and no GPU; made for under 10 "
        "minutes on two cores.",
        epilog="The same line goes on after the last finished stage. Nothing is written outside of the folder.",
    )
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, default=Path("nnssl_demo"),
                        help="a new folder, or one of an earlier demo; default: %(default)s")  # fmt: skip
    parser.add_argument(
        "-i",
        dest="scans",
        metavar="FOLDER",
        type=Path,
        help="your own CT scans for the pretraining",
    )
    parser.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute or two: every command runs, nothing is learnt",
    )
    args = parser.parse_args()

    from nnssl.demo import chain, result, run
    from nnssl.train.processes import choose_device

    size = chain.QUICK if args.quick else chain.Size()
    scans = args.scans.resolve() if args.scans else None

    def work() -> None:
        made = chain.Demo(args.output.resolve(), choose_device(args.device).type, scans, size)
        print(result.describe(made, result.summarise(made, run.run(made))))

    return _report_errors(work)


@_command
def doctor() -> int:
    """nnssl_doctor: what is wrong with this installation, and the line that mends it."""
    argparse.ArgumentParser(
        prog="nnssl_doctor",
        description="What is installed, visible and writable, what nnU-Net will find, what is wrong, and the line that "
        "mends it. Changes nothing. The exit status is 1 when something is wrong.",
    ).parse_args()

    from nnssl.doctor import describe, examine

    report = examine()
    print(describe(report))
    return EXIT_ERROR if report.wrong else 0


@_command
def study() -> int:
    """nnssl_study: a comparison of pretrained starts, from one description to its results."""
    from nnssl.study import command

    args = command.parser().parse_args()
    parsers = {
        "nnssl_pretrain": _pretrain_parser,
        "nnssl_convert": _convert_parser,
        "nnssl_plan": _plan_parser,
    }
    return _report_errors(lambda: command.do(args, parsers))


@_command
def report() -> int:
    """nnssl_report: one HTML page of a pretraining, or of a collection of scans."""
    parser = argparse.ArgumentParser(
        prog="nnssl_report",
        description="One HTML page, which opens anywhere without a network: of a pretraining its "
        "losses, monitors, views, probe, time and what was left out; of a collection, before it is "
        "trained on, three planes and the histogram of its scans, and what was left out and why.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path,
                        help="results of nnssl_pretrain, or a collection of preprocessed scans")  # fmt: skip
    parser.add_argument("-o", dest="page", metavar="PAGE", type=Path,
                        help="where to write; default: report.html in the folder")  # fmt: skip
    parser.add_argument("--scans", metavar="N", type=int, default=60,
                        help="scans of a collection that are shown; default: %(default)s")  # fmt: skip
    args = parser.parse_args()

    from nnssl.report.write import write

    return _report_errors(lambda: print(write(args.folder, args.page, args.scans)))


def _leave(*_: object) -> None:
    """While libraries are imported nothing is begun, and nothing can be ended but the process."""
    os.write(2, b"\nstopped before anything was done; the same line starts it again\n")
    os._exit(EXIT_INTERRUPTED)


def _end_undisturbed() -> None:
    """All is saved or has failed; a signal while Python ends would change the status, no more."""
    for number in signals.STOPS:
        signal.signal(number, signal.SIG_IGN)


def _report_errors(work: Callable[[], object]) -> int:
    """The exit code of `work`: errors that a user can mend are one message, not a traceback."""
    try:
        work()
        sys.stdout.flush()
    # `| head` has seen enough; what Python flushes at its end must go somewhere
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return EXIT_ERROR
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":  # all processes stop after the same step
            print(f"\n{error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _channel(word: str) -> int | None:
    """None: all."""
    if word != "all" and not word.isdecimal():
        raise argparse.ArgumentTypeError(f"a channel is a number from 0, or all; got {word!r}")
    return None if word == "all" else int(word)


def _pretrain_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_pretrain",
        description="Pretrain a Swin encoder on raw, unlabelled CT (with --no-hu: MRI). Needs nnU-Net's three "
        "variables; writes preprocessed scans to $nnUNet_preprocessed/nnssl/NAME and results to "
        "$nnUNet_results/nnssl/NAME.",
        epilog="Stopped by SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or Ctrl-C it saves and exits with 75; the same line with "
        "--c continues exactly.",
    )
    what = parser.add_argument_group("what to learn from")
    what.add_argument("-m", dest="method", metavar="METHOD", help="the method; --list shows them")
    what.add_argument("-i", dest="sources", metavar="FOLDER", nargs="+", type=Path, default=(),
                      help="folders of scans, searched at any depth: NIfTI, NRRD, MHA, MHD, DICOM")  # fmt: skip
    what.add_argument("--pattern", metavar="GLOB", nargs="+", default=(),
                      help="which files of -i are scans: '*/ct.nii.gz'; ** for any depth; default: all")  # fmt: skip
    what.add_argument("-d", dest="dataset_ids", metavar="ID", nargs="+", default=(),
                      help="nnU-Net raw datasets by id or name: the images of channel 0")  # fmt: skip
    what.add_argument("--channels", metavar="N", nargs="+", type=_channel, default=[0],
                      help="of -d, each a scan by itself, or all; default: 0")  # fmt: skip
    what.add_argument(
        "--name", help="name of the collection; default: the folders' and datasets' names"
    )
    what.add_argument(
        "--spacing", metavar=("Z", "Y", "X"), nargs=3, type=float, help="mm; default: the median"
    )
    what.add_argument("--hu", dest="clip", metavar=("LOW", "HIGH"), nargs=2, type=float,
                      help="linear map of this HU range; default: -1000 to 3000, steep in soft tissue")  # fmt: skip
    what.add_argument("--no-hu", action="store_true",
                      help="not CT: each scan is normalised by its own mean and std, as nnU-Net does; default for -d: "
                      "what its dataset.json says")  # fmt: skip
    what.add_argument("-np", dest="num_processes", metavar="N", type=int, default=min(8, limits.cores()),
                      help="processes, each with one scan in memory; default: %(default)s")  # fmt: skip
    what.add_argument(
        "--update",
        action="store_true",
        help="take new scans of -i or -d into the collection there is",
    )
    what.add_argument(
        "-part_id", type=int, default=0, help="this machine's part of the preprocessing, from 0"
    )
    what.add_argument(
        "-num_parts", type=int, default=1, help="how many machines share the preprocessing"
    )
    what.add_argument(
        "--only-prepare", action="store_true", help="preprocess and stop before training"
    )

    how = parser.add_argument_group("how to train")
    how.add_argument("-a", dest="preset", metavar="PRESET", default="smit",
                     help="the encoder: tiny, smit, smit_miccai22, monai; default: %(default)s")  # fmt: skip
    how.add_argument("--from", dest="start", metavar="CHECKPOINT", type=address.named,
                     help="start from this encoder, of its size, instead of a random one; "
                     "also hf://owner/repo/file")  # fmt: skip
    how.add_argument("--steps", type=int, help="optimiser steps; default: 100000")
    how.add_argument(
        "--epochs", type=int, help="instead of --steps: how often each scan is visited"
    )
    how.add_argument(
        "--batch-size", type=int, help="scans a step, over all processes; default: what fits"
    )
    how.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="parts in which a step's batch is computed",
    )
    how.add_argument(
        "--crop", metavar="N", nargs="+", type=int, help="voxels z y x, or y x; default: the plan's"
    )
    how.add_argument(
        "--dims", type=int, choices=(2, 3), help="2: axial slices, for nnU-Net's 2d; default: 3"
    )
    how.add_argument("--set", dest="settings", metavar="FIELD=VALUE", nargs="+", default=(),
                     help="any field of the method's config, such as lr=1e-4 or mask_ratio=0.6")  # fmt: skip
    how.add_argument("--seed", type=int, default=0)
    how.add_argument(
        "--c",
        dest="resume",
        action="store_true",
        help="continue from checkpoint_latest.pth, exactly",
    )
    how.add_argument(
        "-o",
        dest="output",
        metavar="FOLDER",
        type=Path,
        help="results folder, instead of the default",
    )

    where = parser.add_argument_group("on what")
    where.add_argument(
        "-device", choices=("cpu", "cuda", "mps"), help="default: cuda where there is one, else cpu"
    )
    where.add_argument("-num_gpus", type=int, default=1, metavar="N",
                       help="processes on this machine; on several machines: torchrun")  # fmt: skip
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read crops; default: by the machine",
    )
    where.add_argument("--cache", choices=("auto", "ram", "gpu", "off"), default="auto",
                       help="hold the preprocessed scans in memory; auto: where they fit; never changes a "
                       "crop; default: %(default)s")  # fmt: skip
    where.add_argument("--fp32", action="store_true", help="no bf16 on the GPU")
    where.add_argument("--compile", action="store_true", help="torch.compile the encoders")
    where.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: less memory, more time"
    )

    watch = parser.add_argument_group("what is written")
    watch.add_argument(
        "--log-every", type=int, default=10, metavar="STEPS", help="default: %(default)s"
    )
    watch.add_argument("--save-every", type=int, default=1000, metavar="STEPS",
                       help="checkpoint_latest.pth and the pictures, and every ten minutes; default: %(default)s")  # fmt: skip
    watch.add_argument("--probe", metavar="DATASET",
                       help="a labelled nnU-Net raw dataset, by id or name, to judge the encoder by")  # fmt: skip
    watch.add_argument("--probe-cases", type=int, default=10, metavar="N",
                       help="labelled cases, half of them to fit, half to test; default: %(default)s")  # fmt: skip
    watch.add_argument(
        "--probe-every", type=int, metavar="STEPS", help="default: ten times in the run"
    )
    watch.add_argument(
        "--tensorboard",
        action="store_true",
        help='also for TensorBoard (pip install "nnssl-swin[tensorboard]")',
    )
    watch.add_argument(
        "--wandb",
        action="store_true",
        help='also for Weights & Biases (pip install "nnssl-swin[wandb]"), into the project that '
        "$nnUNet_wandb_project names; nnU-Net's $nnUNet_wandb_enabled=1 does the same",
    )
    parser.add_argument("--list", action="store_true", help="list the methods")
    return parser


def _convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_convert",
        description="A checkpoint of ours from weights of others: SMIT, MONAI's Swin UNETR, VoCo, SuPreM, 2D ImageNet "
        "Swins of timm and torchvision. Every tensor is loaded, adapted or left out with a reason, "
        "or nothing is "
        "written. Nothing in the file is executed.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", type=address.named,
        help="a file of PyTorch or safetensors, or its address: hf://owner/repo/file, https://...; "
        "or a checkpoint of ours, for --hub and back")  # fmt: skip
    add(
        "-o",
        dest="output",
        metavar="CHECKPOINT",
        type=Path,
        required=True,
        help="where to write, a file or with --hub a folder; must not exist",
    )
    add("--hub", action="store_true",
        help="write a folder for Hugging Face: model.safetensors, config.json, and README.md as "
        "model card")  # fmt: skip
    add("--licence", metavar="NAME",
        help="of the weights, for the card, such as apache-2.0; default: as their source "
        "states it")  # fmt: skip
    add("--source", metavar="NAME", help="whose weights, where the file does not show it: smit_miccai22, smit_10k, "
        "monai_swinvit, monai_dae, voco, suprem, monai, imagenet")  # fmt: skip
    add(
        "--prefix",
        metavar="TEXT",
        help="what the names of the encoder's tensors begin with, where a file has several",
    )
    add("--hu", metavar="N", nargs="+", type=float,
        help="LOW HIGH: the HU that became 0 and 1; or LOW HIGH MEAN SD; default: by the source")  # fmt: skip
    add("--no-hu", action="store_true", help="let images pass as nnU-Net normalises them")
    add(
        "--spacing",
        metavar=("Z", "Y", "X"),
        nargs=3,
        type=float,
        help="mm of the pretraining; default: by the source",
    )
    add(
        "--crop",
        metavar="N",
        nargs="+",
        type=int,
        help="voxels z y x, or y x, of it; default: by the source",
    )
    add("--axes", choices=("xyz", "zyx"), help="order of the axes it saw; default: by the source")
    add(
        "--merging",
        choices=("legacy", "all"),
        help="MONAI before 1.5, or since; default: by the source",
    )
    add(
        "--dims",
        type=int,
        choices=(2, 3),
        help="3: make a 3D encoder of 2D weights; default: as in the file",
    )
    add("--rgb", action="store_true", help="keep red, green and blue, for data of three channels")
    return parser


def _spacing(words: list[str]) -> str | tuple[float, ...]:
    """`--spacing dataset`, `--spacing pretraining` or `--spacing Z Y X`."""
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        return " ".join(words)


def _plan_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnssl_plan",
        description="Plans for nnU-Net that name our network, the pretrained checkpoint with its hash, and the recipe. "
        "Patch and batch size are planned for this network's memory. They share the data of "
        "nnU-Net's own plans where "
        "both would preprocess the same. Train with: nnUNetv2_train ... -p NAME.",
    )
    add = parser.add_argument
    add(
        "-d",
        dest="dataset",
        metavar="ID",
        required=True,
        help="dataset ID or name, as nnU-Net's -d",
    )
    add("-c", dest="checkpoint", metavar="CHECKPOINT", type=address.named,
        help="checkpoint_final.pth of nnssl_pretrain, or hf://owner/repo/file, https://...; "
        "default: $nnssl_checkpoint or the only one")  # fmt: skip
    add("-a", dest="preset", metavar="PRESET",
        help="no checkpoint but an encoder of this size, for SwinScratchTrainer")  # fmt: skip
    add(
        "-gpu_memory_target",
        metavar="GB",
        type=float,
        help="GPU memory that a training may take; default: 8",
    )
    add("--spacing", nargs="+", metavar="MM", default=["dataset"],
        help="dataset (nnU-Net's choice, default), pretraining (the checkpoint's), or Z Y X in mm")  # fmt: skip
    add("-p", dest="base", metavar="PLANS",
        help="take spacing, patch and batch size from these plans, such as nnUNetPlans")  # fmt: skip
    add("--name", default="nnUNetSwinPlans", help="name of the new plans; default: %(default)s")
    add(
        "--decoder",
        help="swinunetr, light or nnunet; default: the one that was pretrained, or swinunetr",
    )
    add("--patch", nargs="+", type=int, metavar="N", help="patch size Z Y X, or Y X for 2d")
    add("--batch-size", type=int, metavar="B")
    add("--epochs", type=int, metavar="N")
    add("--iterations", type=int, metavar="N", help="an epoch")
    add(
        "--val-iterations", type=int, metavar="N", help="an epoch; default: a fifth of --iterations"
    )
    add("--foreground", type=float, metavar="SHARE",
        help="of the patches drawn around a labelled voxel; default: nnU-Net's 0.33")  # fmt: skip
    add("--no-mirror", dest="mirror", action="store_false", default=None,
        help="no reflections in augmentation and prediction, for labels that tell left from right")  # fmt: skip
    add("--lr", type=float, help="AdamW's learning rate of the decoder")
    add(
        "--head-lr",
        type=float,
        help="learning rate of the heads to logits over the decoder's; default: 30",
    )
    add("--encoder-lr", type=float,
        help="of the encoder's last block, over the decoder's; default: 0.3, from a random start 1")  # fmt: skip
    add(
        "--layer-decay",
        type=float,
        help="learning rate of an encoder block over that of the next one",
    )
    add(
        "--warmup-iterations", type=int, metavar="N", help="default: a twentieth of all, 50 to 2500"
    )
    add("--warmup-epochs", type=float, metavar="N", help="the same in epochs")
    add("--drop-path", type=float, help="of the encoder; default: 0.1, below 5000 iterations 0")
    add(
        "--ema",
        type=float,
        help="of the weights, kept in a step; 0: none; default: 0.99 to 0.999 by iterations",
    )
    add("--unfreeze-every", type=float, metavar="N",
        help="for SwinGradualTrainer: epochs from one stage to the next; default: a twentieth of them")  # fmt: skip
    add("--lora-rank", type=int, metavar="N", help="for SwinLoRATrainer; default: 8")
    add("--lora-alpha", type=float, metavar="N", help="its scale, over the rank; default: 16")
    add("--weight-decay", type=float)
    add("--schedule", help="poly or cosine")
    return parser
