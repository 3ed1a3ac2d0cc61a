"""What listens to a run: the writer, the progress bar, TensorBoard."""
