"""The report: its numbers by hand, its files from rows in any order, its page in a real browser."""

from __future__ import annotations

import csv
import random
import re
import sys
import time
from pathlib import Path

import browser
import numpy as np
import pytest
import synthetic_results
from synthetic_results import case_row, run_row

from nnssl import cli, files
from nnssl.study.report import drawing, efficiency, feature_reuse, scores, write
from nnssl.study.report.page import Section, Tile, Tiles
from nnssl.study.report.page import page as page_of
from nnssl.study.report.results import Group, Results, ResultsError
from nnssl.study.report.statistics import Interval
from nnssl.study.report.tables import Table

SMALL = {"arms": ("scratch", "smit"), "budgets": (2, "all"), "seeds": 2, "cases": 6, "epochs": 5}


def written(folder: Path, rows: list[dict]) -> Path:
    files.write_json_lines(folder / "results.jsonl", rows)
    return write.write(folder / "results.jsonl", folder / "report")


def read_csv(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def by_hand() -> list[dict]:
    """Two arms, one budget, two seeds, two cases, two labels; one label is in neither prediction
    nor truth.
    """
    records = []
    for arm, seed, dice in (
        ("scratch", 0, {"a": (0.4, 0.6), "b": (0.8, None)}),
        ("scratch", 1, {"a": (0.2, 0.4), "b": (0.6, None)}),
        ("smit", 0, {"a": (0.6, 0.8), "b": (0.9, None)}),
        ("smit", 1, {"a": (0.6, 0.6), "b": (0.9, None)}),
    ):
        run = f"t__{arm}__2__{seed}"
        records.append(run_row(run, "t", arm, 2, seed, cases=2))
        for case, values in dice.items():
            records += [case_row(run, case, f"label {n}", value) for n, value in enumerate(values)]
    return records


def test_scores_by_hand():
    results = Results(by_hand())
    scratch = results.scores(Group("t", "scratch", 2), "dice")
    assert scratch.values.tolist() == [[0.5, 0.8], [pytest.approx(0.3), 0.6]]
    assert scratch.mean == pytest.approx((0.65 + 0.45) / 2)
    second = results.scores(Group("t", "scratch", 2), "dice", "label 1")
    assert second.mean == pytest.approx(0.5)
    (compared,) = scores.compare_with_scratch(results)
    assert compared.difference.mean == pytest.approx(np.mean([[0.2, 0.1], [0.3, 0.3]]))
    assert (compared.test.n, compared.test.better, compared.test.p) == (2, 2, 0.5)
    assert scores.measures(results) == ["dice"]


def test_only_seeds_and_cases_that_both_have_are_compared():
    rows = [row for row in by_hand() if row.get("run") != "t__smit__2__1"]
    (compared,) = scores.compare_with_scratch(Results(rows))
    assert compared.difference.mean == pytest.approx(0.15)


def scored_by_hand(cases: dict[tuple[str, int], dict[str, tuple]]) -> Results:
    """Of two arms and seeds: by case, dice and HD95 of two labels, None where in neither mask."""
    records = []
    for (arm, seed), scored in cases.items():
        run = f"t__{arm}__2__{seed}"
        records.append(run_row(run, "t", arm, 2, seed))
        for case, labels in scored.items():
            for number, dice in enumerate(labels):
                others = {} if dice is None else {"surface_dice": dice, "hd95": 40.0 * (1 - dice)}
                records.append(case_row(run, case, f"label {number}", dice, **others))
    return Results(records)


def test_nothing_found_where_nothing_is_beats_a_false_positive():
    """Label 1 is not in case b: smit says so, scratch does not, in its first seed only."""
    results = scored_by_hand({
        ("scratch", 0): {"a": (0.4, 0.6), "b": (0.8, 0.0)},
        ("scratch", 1): {"a": (0.4, 0.6), "b": (0.8, None)},
        ("smit", 0): {"a": (0.5, 0.7), "b": (0.9, None)},
        ("smit", 1): {"a": (0.5, 0.7), "b": (0.9, 0.0)},
    })  # fmt: skip
    group = Group("t", "smit", 2)
    expected = np.array([[0.1, 0.95 - 0.4], [0.1, 0.45 - 0.9]])
    for measure in ("dice", "surface_dice"):
        assert results.over_scratch(group, measure).values == pytest.approx(expected)
    assert results.over_scratch(group, "hd95").values == pytest.approx(-40 * expected)
    assert results.scores(group, "dice").values.tolist()[0] == [pytest.approx(0.6), 0.9]


def test_a_whole_case_without_a_score_is_compared_where_the_other_arm_has_one():
    results = scored_by_hand({
        ("scratch", 0): {"a": (0.5,), "b": (0.0,), "c": (None,)},
        ("smit", 0): {"a": (0.5,), "b": (None,), "c": (None,)},
    })  # fmt: skip
    compared = results.over_scratch(Group("t", "smit", 2), "dice")
    assert compared.cases == ["a", "b", "c"]
    assert compared.values.tolist()[0] == pytest.approx([0.0, 1.0, np.nan], nan_ok=True)
    (test,) = [c.test for c in scores.compare_with_scratch(results) if c.measure == "dice"]
    assert (test.n, test.better, test.worse) == (2, 1, 0)


def test_what_one_arm_was_not_validated_on_is_not_perfect():
    """Folds have cases of their own; scratch lacks a fold, a case of the other and a measure."""
    results = scored_by_hand({
        ("scratch", 0): {"a": (0.5,)},
        ("smit", 0): {"a": (0.6,), "b": (0.0,)},
        ("smit", 1): {"c": (0.7,), "d": (None,)},
        ("other", 0): {"a": (0.5,)},
    })  # fmt: skip
    compared = results.over_scratch(Group("t", "smit", 2), "dice")
    assert (compared.seeds, compared.cases) == ([0], ["a"])
    assert compared.values == pytest.approx(np.array([[0.1]]))
    rows = by_hand()  # of an earlier version, without HD95
    rows[1] |= {"hd95": 3.0}
    assert Results(rows).over_scratch(Group("t", "smit", 2), "hd95").is_empty
    assert results.over_scratch(Group("t", "absent", 2), "dice").is_empty


def test_folds_are_compared_case_by_case():
    results = scored_by_hand({
        (arm, fold): {f"{fold}{case}": (0.5 + gain + 0.1 * fold, None) for case in "ab"}
        for arm, gain in (("scratch", 0.0), ("smit", 0.1))
        for fold in (0, 1)
    })  # fmt: skip
    compared = results.over_scratch(Group("t", "smit", 2), "dice")
    assert compared.values.tolist() == [
        pytest.approx([0.1, 0.1, np.nan, np.nan], nan_ok=True),
        pytest.approx([np.nan, np.nan, 0.1, 0.1], nan_ok=True),
    ]


def test_subjects_are_one_observation():
    rows = [{**row, "subject": "one"} if row["kind"] == "case" else row for row in by_hand()]
    (compared,) = scores.compare_with_scratch(Results(rows))
    assert (compared.test.n, compared.test.better) == (1, 1)


def test_correction_is_over_all_comparisons_of_a_measure():
    compared = scores.compare_with_scratch(Results(synthetic_results.rows(reuse_too=False)))
    for measure in ("dice", "hd95"):
        family = [c for c in compared if c.measure == measure]
        assert len(family) == 2 * 4 * 4
        smallest = min(family, key=lambda c: c.test.p)
        assert smallest.adjusted == pytest.approx(min(1, 32 * smallest.test.p))
    smit = next(
        c for c in compared if c.group == Group("organs", "smit", 2) and c.measure == "hd95"
    )
    assert smit.difference.mean < 0
    assert smit.test.better == 12


def test_ranks_are_over_tasks_and_of_complete_arms():
    rows = synthetic_results.rows(reuse_too=False)
    ranking = scores.rank(Results(rows))
    assert ranking.arms == list(synthetic_results.ARMS)
    assert dict(zip(ranking.arms, ranking.overall.means, strict=True)) == {
        "smit": 1, "simmim": 2, "dino": 3, "scratch": 4, "rotation": 5,
    }  # fmt: skip
    assert ranking.overall.blocks == 2
    assert ranking.overall.groups == [[1, 2, 3, 0, 4]]  # two tasks can tell nothing
    without = [row for row in rows if row.get("run", "") != "hippocampus__dino__2__0"]
    without = [r for r in without if not r.get("run", "").startswith("hippocampus__dino__2__")]
    ranking = scores.rank(Results(without))
    assert "dino" not in ranking.arms
    assert "Left out" in scores.ranks(ranking).note


def of_two_folds(worse: float = 0.05) -> list[dict]:
    """Fold 1 is 0.3 harder than fold 0, in every task; smit lacks it in each, at two cases."""
    rows = [{"kind": "study", "description": {"tasks": [
        {"name": "organs", "modality": "CT"}, {"name": "heart", "modality": "MR"}]}}]  # fmt: skip
    for task, easier in (("organs", 0.0), ("heart", 0.1)):
        for arm, loss in (("scratch", 0.0), ("smit", worse)):
            for budget, fold in ((2, 0), (2, 1), (8, 0), (8, 1)):
                run, dice = f"{task}__{arm}__{budget}__{fold}", 0.5 + easier - loss - 0.3 * fold
                if (arm, budget, fold) != ("smit", 2, 1):
                    rows.append(run_row(run, task, arm, budget, fold, cases=budget))
                    cases = [f"{fold}{number}" for number in range(3)]
                    gain = 0.1 if budget == 8 else 0.0
                    rows += [case_row(run, case, "liver", dice + gain) for case in cases]
    return rows


def test_ranks_are_of_the_seeds_that_all_arms_have():
    ranking = scores.rank(Results(of_two_folds()))
    for ranks in (ranking.overall, *ranking.by_budget.values()):
        assert dict(zip(ranking.arms, ranks.means, strict=True)) == {"scratch": 1, "smit": 2}


def test_an_arm_without_a_seed_of_scratchs_has_no_rank():
    rows = of_two_folds()
    rows = [row for row in rows if row.get("run") != "organs__scratch__2__0"]
    ranking = scores.rank(Results(rows))
    assert (ranking.arms, ranking.left_out) == (["scratch"], ["smit"])
    assert "without a seed that scratch has too: smit." in scores.ranks(ranking).note


def test_labels_are_saved_over_the_seeds_that_both_have():
    """smit is as good as scratch at its two cases with 2 * 4 ** 0.5 of them, in either fold."""
    rows = efficiency.labels_saved(Results(of_two_folds())).rows
    assert [row[4] for row in rows if row[0] == "organs"] == ["4", "more than 8"]
    rows = [row for row in of_two_folds() if row.get("run") != "organs__smit__8__0"]
    assert [row for row in efficiency.labels_saved(Results(rows)).rows if row[0] == "organs"] == []


def test_few_and_many_are_of_the_same_seeds():
    rows = {tuple(row[:2]): row for row in efficiency.gap(Results(of_two_folds())).rows}
    seeds, few, many, gap = rows["organs", "smit"][4:]
    assert (seeds, few, many) == (1, pytest.approx(0.45), pytest.approx(0.55))
    assert gap.mean == pytest.approx(many - few)
    assert rows["organs", "scratch"][4:6] == [2, pytest.approx(0.35)]


def test_the_drop_is_of_the_seeds_that_all_arms_have():
    """Of smit fold 1 is missing in one of the tasks alone."""
    rows = [row for row in of_two_folds() if not row.get("run", "").startswith("heart__smit__2__1")]
    rows += [run_row("heart__smit__2__1", "heart", "smit", 2, 1, cases=2)]
    rows += [case_row("heart__smit__2__1", "10", "liver", 0.25)]
    found = {tuple(row[::2][:2]): row for row in efficiency.modality(Results(rows)).rows}
    assert found["scratch", "2"][3] == pytest.approx(0.5)
    assert found["smit", "2"][3] == pytest.approx(0.45)


def test_the_drop_to_another_modality():
    results = Results(synthetic_results.rows(reuse_too=False))
    rows = {(row[0], row[2]): row for row in efficiency.modality(results).rows}
    smit, scratch = rows[("smit", "2")], rows[("scratch", "2")]
    assert smit[1] == "CT to MR"
    gains = [
        results.scores(Group(t, "smit", 2), "dice").mean
        - results.scores(Group(t, "scratch", 2), "dice").mean
        for t in ("organs", "hippocampus")
    ]
    assert [smit[6].mean, smit[7].mean] == pytest.approx(gains)
    assert smit[8].mean == pytest.approx(gains[0] - gains[1])
    assert smit[8].low > 0  # the made gain is halved in MR
    assert smit[5] == pytest.approx(smit[3] - smit[4])
    assert scratch[6:] == [None] * 3


def test_scratch_has_the_directions_of_the_pretrained_arms():
    rows = synthetic_results.rows(**SMALL, reuse_too=False)
    rows[0]["description"]["arms"][1]["modality"] = "MR"
    found = {row[0]: row[1] for row in efficiency.modality(Results(rows)).rows}
    assert found == {"scratch": "MR to CT", "smit": "MR to CT"}
    rows[0]["description"]["arms"].append({"name": "dino", "modality": "CT"})
    rows += [run_row("organs__dino__2__0", "organs", "dino", 2, 0)]
    both = [row[1] for row in efficiency.modality(Results(rows)).rows if row[0] == "scratch"]
    assert both == ["CT to MR"] * 2 + ["MR to CT"] * 2


def test_without_modalities_there_is_no_such_section(tmp_path):
    rows = synthetic_results.rows(**SMALL, tasks={"organs": "CT"})
    page = written(tmp_path, rows).read_text(encoding="utf-8")
    assert "Modalities" not in page
    assert not (tmp_path / "report" / "tables" / "modality.csv").exists()


def test_heat_maps_are_means_over_the_seeds():
    row = {
        "kind": "cka",
        "task": "t",
        "first": "a pretrained",
        "second": "a 2",
        "rows": ["patch embedding"],
        "columns": ["patch embedding", "stage 1 block 1"],
        "volumes": 5,
    }
    runs = [run_row(f"t__a__2__{seed}", "t", "a", 2, seed) for seed in (0, 1)]
    two = [{**row, "seed": 0, "values": [[0.2, None]]}, {**row, "seed": 1, "values": [[0.4, 0.5]]}]
    (pair,) = feature_reuse.pairs(Results([*runs, *two]))
    assert pair.values.iloc[0, 0] == pytest.approx(0.3)
    assert np.isnan(pair.values.iloc[0, 1])
    assert pair.same() == {"patch embedding": pytest.approx(0.3)}
    assert (pair.seeds, pair.volumes) == (2, 10)


def test_reuse_of_runs_that_no_longer_count_is_left_out():
    rows = synthetic_results.rows(**SMALL)
    for row in rows:
        if row["kind"] == "run" and row["run"] == "organs__smit__2__1":
            row |= {"state": "failed", "reason": "trained with other settings"}
    results = Results(rows)
    named = {(row.task, name, row.seed) for row in results.cka for name in row.encoders}
    assert ("organs", "smit 2", 0) in named
    assert ("organs", "smit 2", 1) not in named
    heads = {(row.task, row.arm, row.budget, row.seed) for row in results.attention}
    assert ("organs", "smit", 2, 0) in heads
    assert ("organs", "smit", 2, 1) not in heads


def test_what_an_earlier_report_had_and_this_one_has_not_is_removed(tmp_path):
    rows = synthetic_results.rows(**SMALL)
    written(tmp_path, rows)
    tables, plots = tmp_path / "report" / "tables", tmp_path / "report" / "plots"
    assert (tables / "comparisons.csv").is_file()
    for row in rows:
        if row["kind"] == "run" and row["arm"] == "scratch":
            row |= {"state": "failed", "reason": "killed"}
    written(tmp_path, rows)
    assert not (tables / "comparisons.csv").exists()
    assert not (plots / "differences.svg").exists()
    assert (tables / "scores.csv").is_file()


def test_files_of_others_stay(tmp_path):
    tables, plots = tmp_path / "report" / "tables", tmp_path / "report" / "plots"
    others = [tables / "mine.csv", plots / "mine.svg", tmp_path / "report" / "notes.txt"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for _ in range(2):
        written(tmp_path, by_hand())
        assert [path.read_text() for path in others] == ["mine"] * 3


def test_two_results_of_one_folder_have_two_reports(tmp_path, monkeypatch, capsys):
    for name in ("a_results", "b_results"):
        files.write_json_lines(tmp_path / f"{name}.jsonl", by_hand())
        monkeypatch.setattr(sys, "argv", ["nnssl_study", "report", f"{tmp_path}/{name}.jsonl"])
        assert cli.study() == 0
        page = tmp_path / f"{name}_report" / "report.html"
        assert page.is_file()
        assert f"Wrote {page}" in capsys.readouterr().out


def _differing(values: list[list[float]]) -> scores.Comparison:
    """The comparison of an arm that differs from scratch by these, by seed and case."""
    rows = []
    for seed, differences in enumerate(values):
        for arm, gains in (("scratch", [0.0] * len(differences)), ("smit", differences)):
            run = f"t__{arm}__2__{seed}"
            rows.append(run_row(run, "t", arm, 2, seed))
            rows += [case_row(run, f"c{n}", "l", 0.25 + g) for n, g in enumerate(gains)]
    (compared,) = scores.compare_with_scratch(Results(rows))
    return compared


def test_one_outlier_does_not_turn_worse_into_better():
    compared = _differing([[-0.01] * 19 + [0.7]])
    assert compared.adjusted < 0.05
    assert compared.difference.mean > 0
    assert (compared.differs, compared.is_better, compared.is_worse) == (False, False, False)


def test_what_differs_from_training_to_training_is_no_difference_of_arms():
    """All cases of a training move together: the test over cases alone is then certain."""
    cases = np.linspace(-0.002, 0.002, 20)
    compared = _differing([list(cases + shift) for shift in (-0.01, 0.03, 0.0)])
    assert compared.seeds == 3
    assert compared.adjusted < 0.05
    assert not compared.differs
    alike = _differing([list(cases + shift) for shift in (0.02, 0.03, 0.025)])
    assert (alike.differs, alike.is_better) == (True, True)


def test_of_one_subject_there_is_no_interval(tmp_path):
    rows = [row for row in by_hand() if row.get("case", "a") == "a"]
    interval = Results(rows).scores(Group("t", "smit", 2), "dice").interval
    assert interval.mean == pytest.approx(0.65)
    assert np.isnan([interval.low, interval.high]).all()
    assert "0.650<" in written(tmp_path, rows).read_text(encoding="utf-8")


def test_only_seeds_that_both_have_are_compared_in_convergence():
    """The arm has the easy draw alone: it is no faster than scratch there."""
    rows = synthetic_results.rows(**SMALL | {"tasks": {"organs": "CT"}}, reuse_too=False)
    rows = [row for row in rows if row.get("run") != "organs__smit__2__1"]
    for row in rows:
        if row["kind"] == "epoch" and "__2__" in row["run"]:
            row["dice"] = 0.1 + 0.1 * row["epoch"] if row["run"].endswith("0") else 0.01
    (ratios,) = {tuple(row[7:]) for row in efficiency.speed(Results(rows)).rows
                 if row[1:3] == ["2", "smit"]}  # fmt: skip
    assert ratios == (1.0, pytest.approx(1.0, rel=0.5), "1 of 1")


def test_rows_that_do_not_say_their_labelled_cases_have_a_report(tmp_path):
    rows = synthetic_results.rows(**SMALL)
    for row in rows:
        row.pop("cases", None)
    assert "Labels saved" not in written(tmp_path, rows).read_text(encoding="utf-8")


def test_another_network_loses_no_gain_of_a_pretraining():
    rows = synthetic_results.rows(**SMALL, reuse_too=False)
    rows[0]["description"]["arms"][1]["start"] = "default"
    assert {row[0] for row in efficiency.modality(Results(rows)).rows} == set()


def test_another_random_start_was_not_pretrained_on_ct():
    rows = synthetic_results.rows(**SMALL, reuse_too=False)
    rows[0]["description"]["arms"][1]["start"] = "scratch"
    assert efficiency.modality(Results(rows)).rows == []


def test_the_gain_of_one_subject_has_no_interval():
    """The cases of heart are all of one person."""
    rows = of_two_folds()
    for row in rows:
        if row["kind"] == "case":
            row["subject"] = row["case"] if row["run"].startswith("organs") else "one"
    cells = {tuple(row[::2][:2]): row[6:] for row in efficiency.modality(Results(rows)).rows}
    within, across, lost = cells["smit", "8"]
    assert np.isfinite([within.low, within.high]).all()
    assert across.mean == pytest.approx(-0.05)
    assert np.isnan([across.low, across.high, lost.low, lost.high]).all()


def test_no_two_of_thirty_arms_look_alike():
    styles = drawing.style([f"arm {n}" for n in range(30)]).values()
    assert len({(style["color"], style["marker"]) for style in styles}) == 31


def test_any_order_and_any_repetition_of_rows_gives_the_same_files(tmp_path):
    """A study that was killed and started again writes rows once more, and in another order."""
    rows = synthetic_results.rows(**SMALL)
    again = [*rows, *rows[:200]]
    random.Random(0).shuffle(again)
    failed = {
        **next(row for row in rows if row["kind"] == "run"),
        "state": "failed",
        "reason": "killed",
    }
    for folder, content in ((tmp_path / "a", rows), (tmp_path / "b", [failed, *again])):
        folder.mkdir()
        written(folder, content)
    written_files = [
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n / "report").rglob("*.*"))
        for n in ("a", "b")
    ]
    assert written_files[0] == written_files[1]
    assert len([path for path in written_files[0] if path.suffix == ".svg"]) >= 8
    differing = [
        path
        for path in written_files[0]
        if (tmp_path / "a" / path).read_bytes() != (tmp_path / "b" / path).read_bytes()
    ]
    assert differing == []


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path):
    written(tmp_path, synthetic_results.rows(**SMALL))
    before = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"kind": "case", "run": "organs__scr')
    write.write(tmp_path / "results.jsonl", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").read_text(encoding="utf-8") == before


def test_what_is_missing_is_said_first(tmp_path):
    rows = synthetic_results.rows(**SMALL, tasks={"organs": "CT"})
    for row in rows:
        if row["kind"] == "run" and row["run"] == "organs__smit__2__1":
            row.update(state="failed", reason="CUDA out of memory <twice>")
        if row["kind"] == "run" and row["run"].startswith("organs__scratch__all"):
            row.update(state="missing", reason=None)
    page = written(tmp_path, rows).read_text(encoding="utf-8")
    first = page[: page.index("<section")]
    assert "organs__smit__2__1: failed (CUDA out of memory &lt;twice&gt;)" in first
    assert "organs, budget all: no finished run of scratch" in first
    assert "only one finished seed" in first
    assert "5 of 8 runs are finished" in first


def test_a_study_without_a_finished_run_still_has_a_page(tmp_path):
    rows = [{**run_row("t__scratch__2__0", "t", "scratch", 2, 0), "state": "missing"}]
    assert "0 of 1 runs are finished" in written(tmp_path, rows).read_text(encoding="utf-8")


def test_without_a_run_there_is_nothing_to_report(tmp_path):
    with pytest.raises(ResultsError, match=r"no run yet.*nnssl_study run"):
        written(tmp_path, [{"kind": "study", "name": "made", "description": {}}])


def test_to_be_as_good_as_a_scratch_that_learnt_nothing_takes_no_time_and_is_not_told():
    rows = synthetic_results.rows(**SMALL | {"tasks": {"organs": "CT"}})
    before = {row[1] for row in efficiency.speed(Results(rows)).rows}
    for row in rows:
        if row["kind"] == "epoch" and "__scratch__2__" in row["run"]:
            row["dice"] = 0.0
    assert (before, {row[1] for row in efficiency.speed(Results(rows)).rows}) == (
        {"2", "all"},
        {"all"},
    )


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nnssl_study run"):
        write.write(tmp_path / "results.jsonl", tmp_path)
    with pytest.raises(ResultsError, match=r"row 1 .* kind 'loss'; known: study, run"):
        Results([{"kind": "loss"}])
    with pytest.raises(ResultsError, match="a case, lacks run, label"):
        Results([{"kind": "case", "case": "a"}])


def test_the_command_takes_a_file_a_folder_or_a_description(tmp_path, monkeypatch, capsys):
    (tmp_path / "made").mkdir()
    files.write_json_lines(tmp_path / "made" / "results.jsonl", by_hand())
    yaml = tmp_path / "study.yaml"
    yaml.write_text(
        "folder: made\narms: [{name: scratch, start: scratch}]\ntasks: [{name: t, dataset: 901}]\n"
    )
    pages = []
    for given in (tmp_path / "made" / "results.jsonl", tmp_path / "made", yaml):
        monkeypatch.setattr(sys, "argv", ["nnssl_study", "report", str(given)])
        assert cli.study() == 0
        page = tmp_path / "made" / "report" / "report.html"
        assert f"Wrote {page}" in capsys.readouterr().out
        pages.append(page.read_text(encoding="utf-8"))
        page.unlink()
    assert pages[0] == pages[1] == pages[2]
    monkeypatch.setattr(sys, "argv", ["nnssl_study", "report", str(tmp_path)])
    assert cli.study() == 1
    assert "results.jsonl do not exist" in capsys.readouterr().err


def test_tables_as_csv(tmp_path):
    table = Table(
        "t",
        "T",
        "",
        ["arm", "Dice", "p"],
        [["a", Interval(0.5, 0.4, 0.6), 0.01], ["b", None, float("nan")]],
    )
    rows = read_csv(table.write(tmp_path))
    assert rows[0] == {
        "arm": "a",
        "Dice": "0.5",
        "Dice low": "0.4",
        "Dice high": "0.6",
        "p": "0.01",
    }
    assert rows[1] == {"arm": "b", "Dice": "", "Dice low": "", "Dice high": "", "p": ""}


def test_five_hundred_runs_in_time(tmp_path):
    """The issue's 30 s are meant for an idle core; of a shared one only the time on it counts."""
    rows = synthetic_results.rows(
        budgets=(2, 3, 5, 7, 10, 15, 20, 30, 40, "all"), seeds=5, cases=10, epochs=50
    )
    assert sum(row["kind"] == "run" for row in rows) == 500
    files.write_json_lines(tmp_path / "results.jsonl", rows)
    before = time.process_time()
    write.write(tmp_path / "results.jsonl", tmp_path / "report")
    assert time.process_time() - before < 30


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    page = written(tmp_path, synthetic_results.rows(**SMALL)).read_text(encoding="utf-8")
    assert set(re.findall(r"""(?:src|href)="(data:image/svg|#)?""", page)) == {
        "data:image/svg",
        "#",
    }
    assert not re.search(r"url\(|@import|https?:", re.sub(r"base64,[^\"]+", "", page))
    assert "default-src 'none'" in page


def test_no_name_becomes_a_part_of_the_page(tmp_path):
    """Names come from datasets, folders and checkpoints of other people."""
    bad = "<script>alert(1)</script>"
    rows = synthetic_results.rows(**SMALL, tasks={"organs": bad})
    for row in rows:
        if row["kind"] == "study":
            row |= {"name": bad, "description": {"name": f'</pre>{bad}" onload="x'}}
        if row["kind"] == "run":
            row |= {"trainer": bad, "plans": f"'\"{bad}"}
        if row["kind"] == "case":
            row["label"] = bad
    rows[1] |= {"state": "failed", "reason": bad}
    page = written(tmp_path, rows).read_text(encoding="utf-8")
    assert bad not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    section = Section(
        "<b>", [], [("<i> \"'", "<svg/>")], "<u>", [Tiles([Tile("<a>", "<p>", None, "<q>")])]
    )
    text = page_of("<h1>", ["<l>"], ["<m>"], [section], {"<f>": "<pre>"}, "<w>")
    tags = {"b", "i", "u", "a", "q", "l", "m", "f", "w"}
    assert tags & set(re.findall(r"<(\w+)>", text)) == set()
    assert 'alt="&lt;i&gt; &#34;&#39;"' in text


ASK = """
  var table = document.getElementById("table-scores"), names = table.tHead.rows[0].cells;
  var column = n => Array.from(table.tBodies[0].rows).map(r => r.cells[n].textContent);
  var dice = Array.from(names).findIndex(c => c.textContent === "Dice");
  var button = names[dice].querySelector("button");
  answer.before = column(dice);
  button.click(); answer.up = column(dice);
  answer.sort = names[dice].getAttribute("aria-sort");
  button.click(); answer.down = column(dice);
  names[1].querySelector("button").click(); answer.budgets = column(1);
"""


@browser.needed
def test_in_a_browser_tables_sort_and_figures_are_readable_at_a_laptops_width(tmp_path):
    page = written(tmp_path, synthetic_results.rows(**SMALL))
    answer = browser.ask(page, tmp_path, script=ASK)
    assert len(answer["before"]) == 8
    assert answer["up"] == sorted(answer["before"], key=lambda text: float(text.split()[0]))
    assert answer["up"] != answer["before"]
    assert answer["down"] == answer["up"][::-1]
    assert answer["sort"] == "ascending"
    assert answer["budgets"] == ["2"] * 4 + ["all"] * 4
    width, window = answer["width"]
    assert width <= window
    assert answer["requests"] == []
    assert len(answer["images"]) >= 8
    for natural, shown in answer["images"]:
        assert 0.85 * natural <= shown <= natural  # text of 9 points stays one of 8 or more
