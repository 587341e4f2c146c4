"""LoRA recovery that resumes, and that keeps a sparse model sparse."""
