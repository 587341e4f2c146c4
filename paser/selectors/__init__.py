"""PASER and its rivals behind one protocol: (candidates, budget) -> Selection."""
