"""Colours that colour-blind readers tell apart."""

# Okabe and Ito (2008): told apart by colour-blind readers. Their black would vanish on a dark page
# and their yellow on a white one, so black is left out and yellow comes last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
