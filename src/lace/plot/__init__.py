"""Figures of training runs and of evaluation reports; needs matplotlib (the extra `plot`)."""
