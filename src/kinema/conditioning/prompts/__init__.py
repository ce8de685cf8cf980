"""Prompts as AUTOMATIC1111 and ComfyUI define them: weights, steps, rows of tokens and textual-inversion embeddings."""
