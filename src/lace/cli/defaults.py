"""Names of the shipped models and default budgets, importable at no cost."""

SHIPPED_LACE = "countdown"
SHIPPED_INDEPENDENT = "countdown-isolated"
MAX_TOKENS = {3: 100, 4: 150}
"""Sampled tokens a thread of a shipped model needs at most, by the count of numbers in the puzzle."""
TOP_P = 0.9
"""Default of the command line: a small model's rare slips are cut off, its choice among many ideas is not."""
