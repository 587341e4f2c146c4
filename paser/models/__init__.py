"""Causal language models: loading, saving, encoding samples, and one fused pass over several."""
