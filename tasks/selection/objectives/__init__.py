"""Say what a batch is wanted for: one module per objective, all with the interface ``base.Objective``.

A new objective is one file and one line in ``registry.OBJECTIVES``. ``strategies/objective.py`` combines them.
"""
