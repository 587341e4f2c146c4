"""The comparison of selectors at equal training tokens that docs/decisions/evidence-plan.md fixes."""
