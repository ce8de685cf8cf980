"""The transformers of Open-Sora 1.0 to 1.3: space and time in turn, text by cross-attention (Zheng et al. 2024)."""
