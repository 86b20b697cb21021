"""The stage of collectives, and the ranks that it starts."""
