"""Prefect: when and where stages run, never what they compute. Imports no torch."""
