"""From a source's files to the pool: read, clean, de-duplicate, hold out; nothing is lost unseen."""
