"""The paper as pure functions on arrays: no files, no models, no clock."""
