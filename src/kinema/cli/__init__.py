"""The command line: a thin skin over the Python API; every module of it imports without torch."""
