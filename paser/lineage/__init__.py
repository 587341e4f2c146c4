"""Records, traces and proofs: which rows went into which model."""
