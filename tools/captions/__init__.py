"""From captions to clips without a download: `python -m tools.captions`, which `make captions` runs."""
