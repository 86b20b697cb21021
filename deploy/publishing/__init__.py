"""Folders that the commands write: all files or none, and the README.md of a shared network."""
