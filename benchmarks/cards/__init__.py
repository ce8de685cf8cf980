"""README and the model cards against the files of results that they name."""
