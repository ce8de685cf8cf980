"""The command line: a thin layer over the Python API. Its modules import without torch."""
