"""Where models and data come from, by URI: `file:`, `hf:` and `pypi:`."""
