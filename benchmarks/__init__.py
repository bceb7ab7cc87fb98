"""Measurements of the project against what it is compared with; results in RESULTS.md."""
