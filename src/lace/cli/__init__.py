"""The command line; one module per verb, and nothing heavy imported before a verb runs."""
