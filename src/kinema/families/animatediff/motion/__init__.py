"""The motion module, and how much it moves."""
