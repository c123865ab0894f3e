"""Recordings of what threads read of each other, and pages that show them."""
