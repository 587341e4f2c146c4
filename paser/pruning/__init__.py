"""Pruning schemes, one file each, behind one small protocol."""
