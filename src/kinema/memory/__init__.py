"""Running within the memory there is: what a request needs, the plan that fits, and weights that take turns."""
