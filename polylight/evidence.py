"""What counts as more than one mode."""

EVEN_ODDS = 4.0
"""Separation at which one mode and several are as likely.

Of 4,000 Gaussian clouds of sixteen points none got there by chance; the images of one real feature,
which are no Gaussian, come nearer."""
