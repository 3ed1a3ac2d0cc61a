"""How images are compared: two feature spaces and the reference statistics of both."""
