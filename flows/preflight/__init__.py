"""``gleaner doctor``: everything that could fail at 3 a.m., tried at 5 p.m.

One check is one function from a ``CheckContext`` to a ``Finding``; ``checks.CHECKS`` is the list of all of them.
"""
