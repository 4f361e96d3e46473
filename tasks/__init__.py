"""WHAT: one file per DVC stage, plain functions on files and parameters.

The stages in order: prepare, assemble, train, evaluate, infer, score, weigh, select, handoff, report.
They meet only in files (``tasks.data.paths``), whose columns are in ``tasks.data.schemas``.
"""
