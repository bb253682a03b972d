"""From results.jsonl to the report's folder: report.html, tables/*.csv, plots/*.svg."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl import files
from nnssl.study.report import drawing, efficiency, feature_reuse, plots, scores
from nnssl.study.report.page import Section, page
from nnssl.study.report.results import Results, ResultsError
from nnssl.study.report.scores import Comparison
from nnssl.study.report.tables import Cell, Table
from nnssl.study.rows import BASELINE, RunRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    results, path = Results.read(rows), Path(folder, "report.html")
    if not results.runs:
        raise ResultsError(
            f"{rows} tells of no run yet; a study writes them: nnssl_study run study.yaml"
        )
    name = results.study.name or Path(rows).resolve().parent.name
    compared = scores.compare(results)
    sections = _sections(_Report(path.parent), results, compared)
    facts = {
        what.capitalize(): json.dumps(value, indent=2, ensure_ascii=False)
        for what in ("description", "versions", "machine")
        if (value := getattr(results.study, what))
    }
    html = page(f"Study {name}", _lead(results, compared), _missing(results), sections, facts)
    with files.atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


class _Report:
    """Writes tables and figures beside the page as they come."""

    def __init__(self, folder: Path) -> None:
        self.tables, self.plots = folder / "tables", folder / "plots"

    def section(
        self, title: str, tables: list[Table], figures: Figures | None = None, lead: str = ""
    ) -> Section:
        """Empty tables and figures are left out."""
        tables = [table for table in tables if table.rows]
        for table in tables:
            table.write(self.tables)
        drawn = [
            (shows, self._write(name, figure))
            for name, (shows, figure) in (figures or {}).items()
            if figure is not None
        ]
        return Section(title, tables, drawn, lead if tables or drawn else "")

    def _write(self, name: str, figure: Figure) -> str:
        svg = drawing.svg(figure)
        with files.atomic(files.inside(self.plots, f"{name}.svg")) as temporary:
            temporary.write_text(svg, encoding="utf-8")
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
        "Filled marks differ after correction for multiple comparisons; the lines are 95 % "
        "intervals."
    )
    return report.section("Compared with scratch", [scores.comparisons(compared)], figures, lead)


def _ranks(report: _Report, results: Results) -> Section:
    ranking = scores.rank(results)
    figure = plots.critical_difference(ranking, results)
    lead = "Arms under one thick bar cannot be told apart." if ranking.overall.groups else ""
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
        feature_reuse.layers(pairs).write(report.tables)
    maps = {
        f"cka_{task}_{number}": (f"CKA by layer, {task}", figure)
        for task in results.tasks
        for number, figure in enumerate(feature_reuse.heat_maps(pairs, task), start=1)
    }
    lead = "Axes: stages, a cell a block."
    return report.section("Feature reuse", [feature_reuse.similarity(pairs)], maps, lead)


def _attention(report: _Report, results: Results) -> Section:
    reaches = feature_reuse.reaches(results)
    heads = {
        f"attention_{task}_{number}": (f"Attention distance by head, {task}", figure)
        for task in results.tasks
        for number, figure in enumerate(
            feature_reuse.attention_plots(reaches, results, task), start=1
        )
    }
    lead = "A point a head; the grey line is even attention."
    return report.section("Attention distance", [feature_reuse.distances(reaches)], heads, lead)


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
    """Words for what is no number."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return str(value)


def _lead(results: Results, compared: list[Comparison]) -> list[str]:
    states = Counter(run.state for run in results.runs.values())
    seeds = {run.seed for run in results.runs.values()}
    dice = [c for c in compared if c.measure == "dice"]
    up = sum(c.differs and c.difference.mean > 0 for c in dice)
    down = sum(c.differs and c.difference.mean < 0 for c in dice)
    return [
        f"{states['done']} of {states.total()} runs are finished:",
        f"{_counted(results.arms, 'arm')}, {_counted(results.tasks, 'task')}, "
        f"{_counted(results.budgets, 'budget')}, {_counted(seeds, 'seed')}.",
        f"Of {len(dice)} comparisons of Dice with {BASELINE}, {up} came out better and {down} "
        "worse after correction,",
        f"{len(dice) - up - down} cannot be told.",
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
    places = {(group.task, group.budget) for group in results.done}
    compared = {(group.task, group.budget) for group in results.done if group.arm == BASELINE}
    alone = sorted((task, str(budget)) for task, budget in places - compared)
    return [
        f"{task}, budget {budget}: no finished run of {BASELINE}, so no comparison"
        for task, budget in alone
    ]


def _of_one_seed(results: Results) -> list[str]:
    fewer = sorted(
        f"{g.task} {g.arm} {g.budget}" for g, runs in results.done.items() if len(runs) == 1
    )
    if not fewer:
        return []
    if len(fewer) == len(results.done):
        return ["one seed: the intervals hold no chance of training, only of cases"]
    return [
        "only one finished seed, whose interval holds no chance of training: "
        f"{', '.join(fewer[:NAMED])}"
    ]
