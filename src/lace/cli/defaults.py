"""Names of the shipped models and default budgets, importable at no cost."""

SHIPPED_LACE = "puzzles"
SHIPPED_INDEPENDENT = "puzzles-isolated"
EXAMPLES = (
    '"Use 9, 14 and 6 to make 30" or '
    '"Compute 357 + 16 + 59 + 30 - 32 - 34 + 46 + 89 + 50 + 59 - 88 - 24 + 74 - 67 + 85 + 98 - 55"'
)
"""A question of each task, as small as those that the shipped models know."""
MAX_TOKENS = {"countdown": 110, "chain-sum": 180}
"""Sampled tokens that a thread of a shipped model needs at most, by task."""
TEMPERATURE = {"countdown": 0.7, "chain-sum": 0.1}
"""Best of a few on validation puzzles, by task: ideas have to differ, sums have to be right."""
TOP_P = 0.9
"""Default of the command line: a small model's rare slips are cut off, its choice among many ideas is not."""
