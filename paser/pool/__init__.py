"""From source files to a clean, de-duplicated pool and a held-out set."""
