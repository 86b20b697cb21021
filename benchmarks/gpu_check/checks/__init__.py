"""The stages of the check, but for those of several processes."""
