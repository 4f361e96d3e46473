"""How candidates are put in order for the next batch; one file per idea, all behind ``base.Strategy``.

A new strategy is one file, one line in ``registry.STRATEGIES`` and one name in ``params.SelectParams``.
"""
