"""Benchmarks and the zoo: run from the repository, never part of the wheel."""
