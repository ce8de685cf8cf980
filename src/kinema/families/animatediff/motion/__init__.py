"""Motion modules and their request options."""
