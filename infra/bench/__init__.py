"""Benchmarks: ratios against a named baseline, measured in one run. Never part of the tests."""
