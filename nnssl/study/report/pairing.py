"""Differences of two groups of runs, paired by seed, case and label."""

from __future__ import annotations

import pandas as pd

PERFECT = {"dice": 1.0, "surface_dice": 1.0, "hd95": 0.0}


def paired_differences(ours: pd.DataFrame, theirs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """By seed (rows) and case (columns), of the means over a case's labels. What one of the two was
    not validated on is left out.

    ours, theirs: a column for each measure, by seed, case and label; NaN where undefined.
    """
    ours, theirs = ours.align(theirs, join="inner", axis=0)
    filled = _filled(ours, theirs, measure), _filled(theirs, ours, measure)
    our_means, their_means = map(_case_means, filled)
    return our_means - their_means


def _filled(rows: pd.DataFrame, others: pd.DataFrame, measure: str) -> pd.Series:
    """A label without any score is in neither mask. Where the others have one, they have found
    what is not there, and leaving the label out would hide it: having found nothing is perfect.
    """
    is_right = rows.isna().all(axis=1) & others[measure].notna()
    return rows[measure].mask(is_right, PERFECT[measure])


def _case_means(values: pd.Series) -> pd.DataFrame:
    """A case without any value has NaN."""
    table = values.rename("value").reset_index()
    return table.pivot_table("value", index="seed", columns="case", dropna=False)
