"""The validation of the score: neurons of known polysemanticity, and how well it tells them."""
