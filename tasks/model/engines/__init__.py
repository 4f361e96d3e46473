"""Where inference computes: on this machine (``local``) or on the nodes of a Ray cluster (``ray_pool``).

An engine gets the pieces whose file is missing, and returns when all of them are written. It decides where and in which
order, never what: whichever engine, and however many nodes, the files hold the same bytes.
"""
