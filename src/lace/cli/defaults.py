"""Names of the shipped models and default budgets, importable at no cost."""

SHIPPED_LACE = "puzzles"
SHIPPED_INDEPENDENT = "puzzles-isolated"
EXAMPLES = (
    '"Use 9, 14 and 6 to make 30" or '
    '"Compute 723 - 33 + 20 - 83 - 60 - 10 - 86 + 65 + 17 - 48 - 55 + 64 + 56 - 66 + 62 + 84 + 67"'
)
"""A question of each task, as small as those that the shipped models know."""
MAX_TOKENS = {"countdown": 110, "chain-sum": 180}
"""Sampled tokens that a thread of a shipped model needs at most, by task."""
TEMPERATURE = {"countdown": 0.7, "chain-sum": 0.1}
"""Best of a few on validation puzzles, by task: ideas have to differ, sums have to be right."""
TOP_P = 0.9
"""Default of the command line: a small model's rare slips are cut off, its choice among many ideas is not."""
