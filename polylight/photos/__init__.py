"""Photos beside the images of a run: which of them drive its neurons, and what they look like."""
