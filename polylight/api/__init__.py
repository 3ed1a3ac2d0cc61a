"""polylight from Python: a network in memory, its neurons, and the pieces that a run is made of.

What it offers is a name of the package itself, loaded when it is asked for.
"""
