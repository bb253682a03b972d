"""From results.jsonl to the report's folder: report.html, tables/*.csv, plots/*.svg."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from nnssl import files
from nnssl.study.report import drawing, efficiency, feature_reuse, plots, scores
from nnssl.study.report.page import Section, page
from nnssl.study.report.results import BASELINE, Results, ResultsError
from nnssl.study.report.scores import Comparison
from nnssl.study.report.tables import Cell, Table

NAMED = 20  # runs that are named one by one where they did not finish


def write(rows: Path | str, folder: Path | str) -> Path:
    """Write the report on a results.jsonl and return the path of its page.

    Nothing but the file is read, so the report can be made again anywhere; the same rows give the
    same files. Raises FileNotFoundError, or ResultsError for a file of something else.
    """
    results, folder = Results.read(rows), Path(folder)
    if not results.runs:
        raise ResultsError(
            f"{rows} tells of no run yet; a study writes them: nnssl_study run study.yaml"
        )
    report = _Report(folder)
    name = results.study.get("name") or Path(rows).resolve().parent.name
    compared = scores.compare(results)
    sections = [
        report.section(
            "Scores",
            [scores.scores(results), scores.by_label(results)],
            {
                "dice_against_cases": (
                    "Dice against the number of labelled cases",
                    plots.against_cases(results),
                )
            },
        ),
        report.section(
            "Compared with scratch",
            [scores.comparisons(compared)],
            {
                "differences": (
                    "Dice minus scratch's with 95 % intervals",
                    plots.differences(compared, results),
                )
            },
            "Filled marks differ after correction for multiple comparisons; the lines are 95 % "
            "intervals.",
        ),
        _ranks(report, results),
        report.section(
            "Convergence",
            [efficiency.speed(results)],
            {
                f"convergence_{task}": (
                    f"Validation Dice by epoch, {task}",
                    plots.training(results, task),
                )
                for task in results.tasks
            },
            "Lines: means over the seeds; bands: their range. Dotted: fractions of scratch's "
            "final Dice. Of more than three budgets the fewest, a middle one and the most labels "
            "are drawn; the table has all.",
        ),
        report.section("Labels", [efficiency.labels_saved(results), efficiency.gap(results)], {}),
        report.section("Modalities", [efficiency.modality(results)], {}),
        *_reuse(report, results),
        report.section("Runs", [_runs(results)], {}),
    ]
    facts = {
        what.capitalize(): json.dumps(results.study[what], indent=2, ensure_ascii=False)
        for what in ("description", "versions", "machine")
        if results.study.get(what)
    }
    path = folder / "report.html"
    with files.atomic(path) as temporary:
        temporary.write_text(
            page(f"Study {name}", _lead(results, compared), _missing(results), sections, facts),
            encoding="utf-8",
        )
    return path


class _Report:
    """Writes tables and figures beside the page as they come."""

    def __init__(self, folder: Path) -> None:
        self.tables, self.plots = folder / "tables", folder / "plots"

    def section(self, title: str, tables: list[Table], figures: dict, lead: str = "") -> Section:
        """figures: file name to (what it shows, figure or None). Empty tables and figures are left
        out.
        """
        tables = [table for table in tables if table.rows]
        for table in tables:
            table.write(self.tables)
        drawn = [
            (name, shows, drawing.svg(made))
            for name, (shows, made) in figures.items()
            if made is not None
        ]
        for name, _, svg in drawn:
            with files.atomic(files.inside(self.plots, f"{name}.svg")) as temporary:
                temporary.write_text(svg, encoding="utf-8")
        return Section(
            title,
            tables,
            [(shows, svg) for _, shows, svg in drawn],
            lead if tables or drawn else "",
        )


def _ranks(report: _Report, results: Results) -> Section:
    ranking = scores.rank(results)
    figure = plots.critical_difference(ranking, results)
    lead = "Arms under one thick bar cannot be told apart." if ranking.overall.groups else ""
    figures = {"ranks": ("Mean ranks over the tasks with the critical difference", figure)}
    return report.section("Ranks", [scores.ranks(ranking)], figures, lead)


def _reuse(report: _Report, results: Results) -> list[Section]:
    pairs, reaches = feature_reuse.pairs(results), feature_reuse.reaches(results)
    if pairs:
        feature_reuse.layers(pairs).write(report.tables)
    maps = {
        f"cka_{task}_{number}": (f"CKA by layer, {task}", figure)
        for task in results.tasks
        for number, figure in enumerate(feature_reuse.heat_maps(pairs, task), start=1)
    }
    heads = {
        f"attention_{task}_{number}": (f"Attention distance by head, {task}", figure)
        for task in results.tasks
        for number, figure in enumerate(
            feature_reuse.attention_plots(reaches, results, task), start=1
        )
    }
    return [
        report.section(
            "Feature reuse",
            [feature_reuse.similarity(pairs)],
            maps,
            "Axes: stages, a cell a block.",
        ),
        report.section(
            "Attention distance",
            [feature_reuse.distances(reaches)],
            heads,
            "A point a head; the grey line is even attention.",
        ),
    ]


def _runs(results: Results) -> Table:
    columns = [
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
    ]
    rows = [[_word(row.get(column)) for column in columns] for row in results.runs.values()]
    return Table(
        "runs",
        "All runs",
        "Every run that the description asks for.",
        columns,
        rows,
        {"hours": ".2f"},
    )


def _word(value: object) -> Cell:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return str(value)


def _lead(results: Results, compared: list[Comparison]) -> list[str]:
    states = Counter(row["state"] for row in results.runs.values())
    seeds = {row["seed"] for row in results.runs.values()}
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
    open_ = [row for row in results.runs.values() if row["state"] != "done"]
    lines = [f"{row['run']}: {row['state']}{_reason(row)}" for row in open_[:NAMED]]
    if len(open_) > NAMED:
        lines.append(f"and {len(open_) - NAMED} more runs; see the table of runs")
    finished = {(g.task, g.budget) for g in results.done if g.arm == BASELINE}
    alone = sorted(
        {(g.task, str(g.budget)) for g in results.done if (g.task, g.budget) not in finished}
    )
    lines += [
        f"{task}, budget {budget}: no finished run of {BASELINE}, so no comparison"
        for task, budget in alone
    ]
    fewer = sorted(
        f"{g.task} {g.arm} {g.budget}" for g, runs in results.done.items() if len(runs) == 1
    )
    if fewer and len(fewer) == len(results.done):
        lines.append("one seed: the intervals hold no chance of training, only of cases")
    elif fewer:
        lines.append(
            "only one finished seed, whose interval holds no chance of training: "
            f"{', '.join(fewer[:NAMED])}"
        )
    return lines


def _reason(row: dict) -> str:
    return f" ({row['reason']})" if row.get("reason") else ""
