"""The commands: one thin function each. Every one can be called from Python through the functions
below it.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import io
import os
import signal
import sys
from collections.abc import Callable

from nnssl import conflict, options, parsers, signals
from nnssl.signals import Interrupted
from nnssl.train.pretrain_options import Options

conflict.refuse()  # again: MIC-DKFZ's `__init__.py` may lie in the place of ours

EXIT_ERROR, EXIT_INTERRUPTED = 1, 75  # 75: sysexits.h's EX_TEMPFAIL, "try again"
EXIT_CTRL_C = 130  # a shell's own, for a command that has nothing to save


def _console_command(function: Callable[[], int]) -> Callable[[], int]:
    """A command that exits without a traceback on Ctrl-C, and prints names on any terminal."""

    @functools.wraps(function)
    def command() -> int:
        _show_all_names()
        try:
            return function()
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return EXIT_CTRL_C

    return command


def _show_all_names() -> None:
    """On terminals with a limited encoding, other characters are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@_console_command
def pretrain() -> int:
    """nnssl_pretrain: raw CT to a pretrained Swin encoder."""
    arguments = sys.argv[1:]
    parser = parsers.pretrain_parser()
    args = parser.parse_args(arguments)
    if args.list:
        from nnssl.bench import listing

        return _report_errors(lambda: print(listing.method_table()))
    _require_method_and_scans(parser, args)
    with signals.handled(_exit_on_signal):
        from nnssl.train.pretrain import distributed
        from nnssl.train.pretrain import pretrain as run
    if ended := distributed.launch(args.num_gpus, arguments):
        return {"done": 0, "failed": EXIT_ERROR, "stopped": EXIT_INTERRUPTED}[ended]
    try:
        status = _report_errors(lambda: run(options.build_dataclass(Options, args)))
    except BaseException:
        distributed.end_at_once(EXIT_ERROR)
        raise
    finally:
        atexit.register(_end_undisturbed)  # what is registered last comes first
    if status:
        distributed.end_at_once(status)
    return status


def _require_method_and_scans(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.method is None:
        parser.error("no method given; choose one with -m (nnssl_pretrain --list shows them)")
    if not (args.sources or args.dataset_ids or args.name):
        parser.error("no scans given; use -i FOLDER, or -d ID of an nnU-Net raw dataset")


@_console_command
def inspect() -> int:
    """nnssl_inspect: what is in a checkpoint, or the shell line that lets nnU-Net find our
    trainers.
    """
    args = parsers.inspect_parser().parse_args()
    if args.nnunet_env:
        from nnssl import trainer_path

        print(trainer_path.shell_line(trainer_path.users_folders()))
        return 0
    return _report_errors(lambda: _inspect(args))


def _inspect(args: argparse.Namespace) -> None:
    from nnssl import checkpoint
    from nnssl.finetune import checkpoint_choice

    path = args.checkpoint or checkpoint_choice.choose({}).path
    describe = checkpoint.to_json if args.json else checkpoint.describe
    print(describe(checkpoint.load(path)))


@_console_command
def export() -> int:
    """nnssl_export: a trained network as ONNX and torch.export, with what it expects."""
    args = parsers.export_parser().parse_args()

    from nnssl.export import ExportRequest
    from nnssl.export import export as run

    return _report_errors(lambda: run(options.build_dataclass(ExportRequest, args)))


@_console_command
def plan() -> int:
    """nnssl_plan: a plans file that carries a checkpoint and a recipe."""
    args = parsers.plan_parser().parse_args()

    from nnssl.plans.derive import PlansRequest, derive
    from nnssl.plans.plans_description import describe_plans
    from nnssl.recipe import Recipe

    request = options.build_dataclass(PlansRequest, args, recipe=options.values_of(Recipe, args))

    def run() -> None:
        derived = derive(request)
        print(describe_plans(derived.path, request, derived.before))

    return _report_errors(run)


@_console_command
def convert() -> int:
    """nnssl_convert: third-party weights as a checkpoint of this package."""
    args = parsers.convert_parser().parse_args()

    from nnssl.convert.conversion import ConvertRequest
    from nnssl.convert.conversion import convert as run

    return _report_errors(lambda: print(run(options.build_dataclass(ConvertRequest, args))))


@_console_command
def embed() -> int:
    """nnssl_embed: features of scans."""
    args = parsers.embed_parser().parse_args()

    def work() -> None:
        from nnssl.embed.work import EmbedOptions
        from nnssl.embed.work import embed as run

        run(options.build_dataclass(EmbedOptions, args))

    return _report_errors(work)


@_console_command
def demo() -> int:
    """nnssl_demo: the whole chain on synthetic CT."""
    args = parsers.demo_parser().parse_args()

    from nnssl.demo import chain, result, stages
    from nnssl.train.distributed import choose_device

    size = chain.QUICK if args.quick else chain.Size()
    scans = args.scans.resolve() if args.scans else None

    def work() -> None:
        demo_run = chain.Demo(args.output.resolve(), choose_device(args.device).type, scans, size)
        print(result.result_text(demo_run, result.summarise(demo_run, stages.run(demo_run))))

    return _report_errors(work)


@_console_command
def doctor() -> int:
    """nnssl_doctor: what is wrong with this installation, and the command that fixes it."""
    argparse.ArgumentParser(
        prog="nnssl_doctor",
        description="Checks what is installed, visible and writable and what nnU-Net will find; "
        "reports what is wrong, and the command that fixes it. Changes nothing. The "
        "exit status is 1 when something is wrong.",
    ).parse_args()

    from nnssl.doctor import examine, report_text

    report = examine()
    print(report_text(report))
    return EXIT_ERROR if report.wrong else 0


@_console_command
def study() -> int:
    """nnssl_study: a comparison of pretrained starts, from one description to its results."""
    from nnssl.study import command

    args = command.parser().parse_args()
    return _report_errors(lambda: command.dispatch(args))


@_console_command
def report() -> int:
    """nnssl_report: one HTML page of a pretraining, or of a collection of scans."""
    args = parsers.report_parser().parse_args()

    from nnssl.report.from_folder import write_page

    return _report_errors(lambda: print(write_page(args.folder, args.page, args.scans)))


def _exit_on_signal(*_: object) -> None:
    """While libraries are being imported nothing has started yet, so a signal just ends the
    process.
    """
    os.write(2, b"\nstopped before anything was done; the same command starts it again\n")
    os._exit(EXIT_INTERRUPTED)


def _end_undisturbed() -> None:
    """All is saved or has failed; a signal during interpreter exit would only change the status."""
    for number in signals.STOPS:
        signal.signal(number, signal.SIG_IGN)


def _report_errors(work: Callable[[], object]) -> int:
    """The exit code of `work`: errors that a user can fix print one message, not a traceback."""
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
        _report_stop(error)
        return EXIT_INTERRUPTED
    return 0


def _report_stop(error: Interrupted) -> None:
    if os.environ.get("RANK", "0") == "0":  # all processes stop after the same step
        print(f"\n{error}", file=sys.stderr)
