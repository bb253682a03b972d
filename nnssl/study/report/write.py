"""From results.jsonl to the report's folder: report.html, tables/*.csv, plots/*.svg."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import files
from nnssl.study.report import (
    attention_reach,
    drawing,
    efficiency,
    feature_reuse,
    plots,
    scores,
)
from nnssl.study.report.page import Section, page
from nnssl.study.report.results import Results
from nnssl.study.report.scores import Comparison
from nnssl.study.report.tables import Cell, Table
from nnssl.study.rows import BASELINE, RunRow, StudyRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = "files.json"  # in the report's folder: the tables and figures that are its own
NAMED = 20  # runs that are named one by one where they did not finish

CURVES = (
    "Lines: means over the seeds; bands: their range. Dotted: fractions of scratch's final Dice. "
    "Of more than three budgets the fewest, a middle one and the most labels are drawn; the table "
    "has all."
)

Figures = Mapping[str, tuple[str, "Figure | None"]]  # file name to (what it shows, figure)


def write(rows: Path | str, folder: Path | str) -> Path:
    """Write the report on a results.jsonl and return the path of its page.

    Nothing but the file is read, so the report can be made again anywhere; the same rows give the
    same files. Raises FileNotFoundError, or ResultsError for a file of something else.
    """
    results, path = Results.of_runs(rows), Path(folder, "report.html")
    name = results.study.name or Path(rows).resolve().parent.name
    report = _Report(path.parent)
    html = _page(f"Study {name}", results, report)
    with files.atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    report.remove_earlier()
    report.note()
    return path


def _page(title: str, results: Results, report: _Report) -> str:
    """The page; its tables and figures become files of the report's folder."""
    compared = scores.compare_with_scratch(results)
    return page(
        title,
        _opening_sentences(results, compared),
        _missing(results),
        _sections(report, results, compared),
        _study_provenance(results.study),
    )


def _study_provenance(study: StudyRow) -> dict[str, str]:
    return {
        what.capitalize(): json.dumps(value, indent=2, ensure_ascii=False)
        for what in ("description", "versions", "machine")
        if (value := getattr(study, what))
    }


class _Report:
    """Writes tables and figures into the page's folder as they come."""

    def __init__(self, folder: Path) -> None:
        self.tables, self.plots = folder / "tables", folder / "plots"
        self._noted, self._written = folder / WRITTEN, set[Path]()

    def table(self, table: Table) -> None:
        self._written.add(table.write(self.tables))

    def remove_earlier(self) -> None:
        """What an earlier report has written and this one has not: it would look current."""
        noted = files.read_json(self._noted)["files"] if self._noted.is_file() else []
        for path in {*self.tables.glob("*.csv"), *self.plots.glob("*.svg")} - self._written:
            if self._name(path) in noted:
                path.unlink()

    def note(self) -> None:
        """Which files are this report's."""
        files.write_json(self._noted, {"files": sorted(map(self._name, self._written))})

    def _name(self, path: Path) -> str:
        return path.relative_to(self._noted.parent).as_posix()

    def section(
        self, title: str, tables: list[Table], figures: Figures | None = None, lead: str = ""
    ) -> Section:
        """Empty tables and figures are left out."""
        tables = [table for table in tables if table.rows]
        for table in tables:
            self.table(table)
        drawn = [
            (shows, self._write(name, figure))
            for name, (shows, figure) in (figures or {}).items()
            if figure is not None
        ]
        return Section(title, tables, drawn, lead if tables or drawn else "")

    def _write(self, name: str, figure: Figure) -> str:
        svg, path = drawing.svg(figure), files.inside(self.plots, f"{name}.svg")
        with files.atomic(path) as temporary:
            temporary.write_text(svg, encoding="utf-8")
        self._written.add(path)
        return svg


def _sections(report: _Report, results: Results, compared: list[Comparison]) -> list[Section]:
    return [
        _scores(report, results),
        _compared(report, results, compared),
        _ranks(report, results),
        _convergence(report, results),
        report.section("Labels", [efficiency.labels_saved(results), efficiency.gap(results)]),
        report.section("Modalities", [efficiency.modality(results)]),
        _reuse(report, results),
        _attention(report, results),
        report.section("Runs", [_runs(results)]),
    ]


def _scores(report: _Report, results: Results) -> Section:
    shows = "Dice against the number of labelled cases"
    figures = {"dice_against_cases": (shows, plots.against_cases(results))}
    return report.section("Scores", scores.tables(results), figures)


def _compared(report: _Report, results: Results, compared: list[Comparison]) -> Section:
    shows = "Dice minus scratch's with 95 % intervals"
    figures = {"differences": (shows, plots.differences(compared, results))}
    lead = (
        "Filled marks differ after correction for multiple comparisons, with an interval without "
        "0; the lines are 95 % intervals."
    )
    return report.section("Compared with scratch", [scores.comparisons(compared)], figures, lead)


def _ranks(report: _Report, results: Results) -> Section:
    ranking = scores.rank(results)
    figure = plots.critical_difference(ranking, results)
    lead = "Arms under one thick bar do not differ significantly." if ranking.overall.groups else ""
    figures = {"ranks": ("Mean ranks over the tasks with the critical difference", figure)}
    return report.section("Ranks", [scores.ranks(ranking)], figures, lead)


def _convergence(report: _Report, results: Results) -> Section:
    drawn = {task: plots.training(results, task) for task in results.tasks}
    figures = {
        f"convergence_{task}": (f"Validation Dice by epoch, {task}", figure)
        for task, figure in drawn.items()
    }
    return report.section("Convergence", [efficiency.speed(results)], figures, CURVES)


def _reuse(report: _Report, results: Results) -> Section:
    pairs = feature_reuse.pairs(results)
    if pairs:
        report.table(feature_reuse.layers(pairs))
    drawn = {task: feature_reuse.heat_maps(pairs, task) for task in results.tasks}
    maps = _figures_by_name(drawn, "cka", "CKA by layer")
    lead = "Axes: stages, a cell a block."
    return report.section("Feature reuse", [feature_reuse.similarity(pairs)], maps, lead)


def _attention(report: _Report, results: Results) -> Section:
    reaches = attention_reach.reaches(results)
    drawn = {task: attention_reach.plots(reaches, results, task) for task in results.tasks}
    heads = _figures_by_name(drawn, "attention", "Attention distance by head")
    lead = "A point a head; the grey line is even attention."
    return report.section("Attention distance", [attention_reach.distances(reaches)], heads, lead)


def _figures_by_name(drawn: Mapping[str, list[Figure]], name: str, shows: str) -> Figures:
    """The figures of each task, named <name>_<task>_<number>."""
    return {
        f"{name}_{task}_{number}": (f"{shows}, {task}", figure)
        for task, figures in drawn.items()
        for number, figure in enumerate(figures, start=1)
    }


RUNS = Table(
    name="runs",
    title="All runs",
    note="Every run that the description asks for.",
    columns=[
        "task",
        "arm",
        "budget",
        "seed",
        "cases",
        "state",
        "epochs",
        "hours",
        "configuration",
        "trainer",
        "plans",
        "reason",
    ],
    formats={"hours": ".2f"},
)


def _runs(results: Results) -> Table:
    runs = results.runs.values()
    return RUNS.of([_word(getattr(run, column)) for column in RUNS.columns] for run in runs)


def _word(value: object) -> Cell:
    """Words for missing numbers."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return str(value)


def _opening_sentences(results: Results, compared: list[Comparison]) -> list[str]:
    states = Counter(run.state for run in results.runs.values())
    return [
        f"{states['done']} of {states.total()} runs are finished:",
        _extent(results),
        *_verdicts([c for c in compared if c.measure == "dice"]),
    ]


def _extent(results: Results) -> str:
    seeds = {run.seed for run in results.runs.values()}
    return (
        f"{_counted(results.arms, 'arm')}, {_counted(results.tasks, 'task')}, "
        f"{_counted(results.budgets, 'budget')}, {_counted(seeds, 'seed')}."
    )


def _verdicts(dice: list[Comparison]) -> list[str]:
    """How many comparisons came out which way."""
    up = sum(c.is_better for c in dice)
    down = sum(c.is_worse for c in dice)
    return [
        f"Of {len(dice)} comparisons of Dice with {BASELINE}, {up} came out better and {down} "
        "worse after correction and with an interval without 0,",
        f"{len(dice) - up - down} are inconclusive.",
    ]


def _counted(things: Collection, name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def _missing(results: Results) -> list[str]:
    """In words: runs that did not finish, and groups that nothing can be compared with."""
    return [*_unfinished(results), *_without_baseline(results), *_of_one_seed(results)]


def _unfinished(results: Results) -> list[str]:
    open_ = [run for run in results.runs.values() if run.state != "done"]
    lines = [f"{run.run}: {run.state}{_reason(run)}" for run in open_[:NAMED]]
    more = len(open_) - len(lines)
    return [*lines, f"and {more} more runs; see the table of runs"] if more else lines


def _reason(run: RunRow) -> str:
    return f" ({run.reason})" if run.reason else ""


def _without_baseline(results: Results) -> list[str]:
    return [
        f"{task}, budget {budget}: no finished run of {BASELINE}, so it cannot be compared"
        for task, budget in sorted(_missing_baselines(results))
    ]


def _missing_baselines(results: Results) -> set[tuple[str, str]]:
    """Tasks and budgets of finished runs that nothing can be compared with."""
    return {(g.task, str(g.budget)) for g in results.done if g.baseline not in results.done}


def _of_one_seed(results: Results) -> list[str]:
    fewer = sorted(
        f"{g.task} {g.arm} {g.budget}" for g, runs in results.done.items() if len(runs) == 1
    )
    if not fewer:
        return []
    if len(fewer) == len(results.done):
        return [
            "one seed: the intervals reflect variation between cases only, not between trainings"
        ]
    return [
        "only one finished seed, so the interval does not reflect variation between trainings: "
        f"{', '.join(fewer[:NAMED])}"
    ]
