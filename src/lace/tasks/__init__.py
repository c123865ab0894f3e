"""Tasks: puzzles, their prompts, and exact verifiers. Nothing here knows of models."""
