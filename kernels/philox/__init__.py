"""Random numbers that depend on a key and a counter alone (Philox4x32-10).

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Each image draws with a key of
its own, so what it draws does not depend on which other images exist.
"""
