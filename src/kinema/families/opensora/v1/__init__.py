"""Open-Sora 1.0 to 1.3 as models: configs, sampling, options and files; parts are in ``stdit``, ``vae1x``,
``first_line``."""
