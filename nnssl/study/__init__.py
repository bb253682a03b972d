"""A study: pretrained arms against a random start, on tasks, with budgets of labels; from a
description to results.
"""
