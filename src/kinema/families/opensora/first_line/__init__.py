"""Open-Sora 1.0 to 1.3: their processes, mask strategies, prompts, loops and sizes, free of any network."""
