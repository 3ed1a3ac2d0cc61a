"""What polylight is compared with: one process each, in an environment of their own."""
