"""What counts as more than one mode."""

EVEN_ODDS = 4.0
"""Separation at which one mode and several are as likely.

By chance one of thirty thousand Gaussian clouds gets there, while the images of one real feature, which
are no Gaussian, come close."""
