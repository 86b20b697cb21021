"""What several stages use: data, networks, commands and measurements."""
