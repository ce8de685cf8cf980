"""Weight files: safe reading and writing, key maps between layouts, downloads from the Hugging Face hub."""
