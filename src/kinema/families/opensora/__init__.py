"""Open-Sora 2.0 (Peng et al. 2025): text and frames to video with a multimodal diffusion transformer."""
