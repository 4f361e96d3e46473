"""Preflight checks: what a run needs, tried by ``gleaner doctor`` before the run does.

One check is one function from a ``CheckContext`` to a ``Finding``; ``checks.CHECKS`` is the list of all of them.
"""
