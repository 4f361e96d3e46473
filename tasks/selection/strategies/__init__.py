"""Order the candidates for the next batch; one module per strategy, all with the interface ``base.Strategy``.

A new strategy is one file, one line in ``registry.STRATEGIES`` and one name in ``params.SelectParams``. The user's own
class needs neither: ``select.strategy`` names it as ``package.module:ClassName``.
"""
