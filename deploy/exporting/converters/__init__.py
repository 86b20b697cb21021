"""One module for each format of exported files, and the quantisation to int8."""
