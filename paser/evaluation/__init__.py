"""How far a recovered model is from the dense one, by capability, with intervals."""
