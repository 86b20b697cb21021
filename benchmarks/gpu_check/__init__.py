"""Checks training on a GPU with the Python that is there: make gpu-check."""
