"""The command-line parser of `nnssl_study` and its steps; `nnssl.cli` calls them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnssl.study.design.description import Study

STEPS = {
    "init": "write a commented description",
    "run": "run the missing steps, in order; the cost is printed first. After a stop, the same "
    "command continues",
    "features": "CKA and attention distance of the finished runs' encoders, for the report",
    "report": "tables, plots, one HTML page of the results so far; also from a results.jsonl alone",
}


def parser() -> argparse.ArgumentParser:
    study_parser = argparse.ArgumentParser(
        prog="nnssl_study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares pretrained starts with a random one, on tasks and label budgets, "
        "from one\n"
        "description file. Every run is an nnU-Net training; needs its three variables.\n\n"
        "steps:\n" + "\n".join(f"  {step:10}{text}" for step, text in STEPS.items()),
    )
    study_parser.add_argument(
        "step", choices=STEPS, metavar="STEP", help=f"one of {', '.join(STEPS)}"
    )
    study_parser.add_argument(
        "description",
        metavar="STUDY.YAML",
        type=Path,
        help="the description file; for report, a results.jsonl also works",
    )
    _add_run(study_parser.add_argument_group("run"))
    features = study_parser.add_argument_group("features")
    features.add_argument(
        "--volumes",
        metavar="N",
        type=_positive_number,
        default=50,
        help="validation crops per comparison; default: %(default)s",
    )
    return study_parser


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dry-run", action="store_true", help="only print what would be done and what it costs"
    )
    group.add_argument(
        "--executor", choices=("local", "slurm"), default="local", help="default: %(default)s"
    )
    group.add_argument(
        "--parallel",
        metavar="N",
        type=_positive_number,
        help="local runs in parallel; default: one per GPU",
    )


def _positive_number(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {word!r}")
    return int(word)


def dispatch(args: argparse.Namespace) -> None:
    {"init": _init, "run": _run_study, "features": _features, "report": _report}[args.step](args)


def _init(args: argparse.Namespace) -> None:
    from nnssl.study.design import template

    template.write_description(args.description)
    print(f"Wrote {args.description}. Edit it, then: nnssl_study run {args.description} --dry-run")


def _run_study(args: argparse.Namespace) -> None:
    from nnssl.study.design import check
    from nnssl.study.design.description import load_study
    from nnssl.study.execution import estimate, executor

    described = load_study(args.description)
    check.check_settings(described)
    parallel = executor.parallel_runs(described.device, args.parallel)
    _say(estimate.describe_study(described, parallel))
    if not args.dry_run:
        _do_what_is_missing(described, args)
    elif args.executor == "slurm":
        executor.chosen(args.executor, described, args.parallel)  # which checks its parameters


def _do_what_is_missing(study: Study, args: argparse.Namespace) -> None:
    from nnssl.study.execution import executor, orchestrate

    execute = executor.chosen(args.executor, study, args.parallel)
    states = orchestrate.run(study, execute, _say)
    _say(orchestrate.summary(study, states))
    _say(f"Next: nnssl_study report {args.description}")


def _features(args: argparse.Namespace) -> None:
    from nnssl.study.execution import requirements
    from nnssl.study.measurement import reuse

    described = _collected(args.description)
    requirements.check_inputs(described)
    new = reuse.measure_missing(described, args.volumes, _say)
    _say(f"{new} new rows in {described.results}. Next: nnssl_study report {args.description}")


def _report(args: argparse.Namespace) -> None:
    from nnssl.study.report import write

    rows = _results_of(args.description)
    name = "report" if rows.name == "results.jsonl" else f"{rows.stem}_report"
    _say(f"Wrote {write.write(rows, rows.parent / name)}")


def _results_of(path: Path) -> Path:
    """The results file that a path names: a study's folder, its description, or the file itself."""
    from nnssl.study.design.template import SUFFIXES

    if path.is_dir():
        return path / "results.jsonl"
    return _collected(path).results if path.suffix in SUFFIXES else path


def _say(text: str) -> None:
    """At once, since what follows may take hours."""
    print(text, flush=True)


def _collected(path: Path) -> Study:
    """The `Study` that is described at `path`, its results up to date."""
    from nnssl.study.design.description import load_study
    from nnssl.study.execution.collect import collect

    described = load_study(path)
    if described.runs.is_dir():  # elsewhere there are rows alone
        collect(described)
    return described
