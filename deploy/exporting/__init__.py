"""Conversion of a network to files of other runtimes, and the proof that a file computes what the network does."""
