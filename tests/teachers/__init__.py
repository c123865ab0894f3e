"""OpenAI-compatible servers for tests and benchmarks: scripted ones, faulty ones, and one that really solves puzzles.

PYTHONPATH=tests python -m teachers --port 8001 --faults 0.2
"""
