"""The words of `nnssl_study`, and which function does what they ask; `nnssl.cli` calls it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

STEPS = {
    "init": "write a commented description",
    "run": "do what is missing, in order; the cost is printed first. Stopped, the same line "
    "goes on",
    "features": "CKA and attention distance of the finished runs' encoders, for the report",
    "report": "tables, plots and one page on what is there; also of a results.jsonl alone",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nnssl_study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Compares pretrained starts with a random one, on tasks, with budgets of "
        "labels, as one\n"
        "description says. Every run is a training by nnU-Net; needs its three variables.\n\n"
        "steps:\n" + "\n".join(f"  {step:10}{text}" for step, text in STEPS.items()),
    )
    made.add_argument("step", choices=STEPS, metavar="STEP", help=f"one of {', '.join(STEPS)}")
    made.add_argument(
        "description",
        metavar="STUDY.YAML",
        type=Path,
        help="the description; for report, a results.jsonl does too",
    )
    run = made.add_argument_group("run")
    run.add_argument(
        "--dry-run", action="store_true", help="only say what would be done and what it costs"
    )
    run.add_argument(
        "--executor", choices=("local", "slurm"), default="local", help="default: %(default)s"
    )
    run.add_argument(
        "--parallel",
        metavar="N",
        type=int,
        help="local runs beside each other; default: one for each GPU",
    )
    features = made.add_argument_group("features")
    features.add_argument(
        "--volumes", metavar="N", type=int, default=50, help="crops each; default: %(default)s"
    )
    return made


def do(
    asked: argparse.Namespace, parsers: Mapping[str, Callable[[], argparse.ArgumentParser]]
) -> None:
    """parsers: those of our commands by name, to check what a description would type."""
    if asked.step == "run":
        _run(asked, parsers)
    else:
        {"init": _init, "features": _features, "report": _report}[asked.step](asked)


def _init(asked: argparse.Namespace) -> None:
    from nnssl.study import template

    template.write(asked.description)
    print(
        f"Wrote {asked.description}. Edit it, then: nnssl_study run {asked.description} --dry-run"
    )


def _run(asked: argparse.Namespace, parsers: Mapping) -> None:
    from nnssl.study import check, run
    from nnssl.study.description import load

    described = load(asked.description)
    check.check(described, parsers)
    print(run.describe(described, run.beside(described.device, asked.parallel)), flush=True)
    if not asked.dry_run:
        executor = run.executor_of(asked.executor, described, asked.parallel)
        states = run.run(described, executor, lambda text: print(text, flush=True))
        print(run.summary(described, states))
        print(f"Next: nnssl_study report {asked.description}")


def _features(asked: argparse.Namespace) -> None:
    from nnssl.study import preparation, reuse

    described = _collected(asked.description)
    preparation.check(described)
    new = reuse.measure(described, asked.volumes, lambda text: print(text, flush=True))
    print(f"{new} new rows in {described.results}. Next: nnssl_study report {asked.description}")


def _report(asked: argparse.Namespace) -> None:
    from nnssl.study.report import build

    rows = asked.description / "results.jsonl" if asked.description.is_dir() else asked.description
    if rows.suffix in (".yaml", ".yml"):
        rows = _collected(rows).results
    print(f"Wrote {build.write(rows, rows.parent / 'report')}")


def _collected(path: Path):
    """The `Study` that is described at `path`, its results up to date."""
    from nnssl.study.collect import collect
    from nnssl.study.description import load

    described = load(path)
    # elsewhere there are rows alone, which count as they are
    if (described.folder / "runs").is_dir():
        collect(described)
    return described
