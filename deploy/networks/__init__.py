"""A network to use: a checkpoint, a shared folder or an exported file, with its metadata and thresholds."""
