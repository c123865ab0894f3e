"""Evaluation: accuracy with intervals, paired by puzzle, at equal token budgets."""
