"""Files of Open-Sora 2.0: recognising, opening and converting them."""
