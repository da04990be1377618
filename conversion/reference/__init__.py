"""Forward passes of other systems in plain torch, from their papers and key lists; only parity checks use them.

Nothing here knows this package's models, so that a mistake there is not repeated here.
"""
