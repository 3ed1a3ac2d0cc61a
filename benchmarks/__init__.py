"""What polylight costs and reaches, measured: one file a benchmark, one JSON a benchmark."""
