"""From the words of a command line to the arguments of a function."""
