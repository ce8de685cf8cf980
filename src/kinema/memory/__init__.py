"""Running within the available memory: estimating a request's needs, choosing a memory plan, offloading weights."""
