"""Accept detections as labels by a precision that was measured, and check the promise: ``gleaner autolabel``.

Nothing here is a stage, and nothing is written to ``data/``: accepted boxes train no model.
"""
