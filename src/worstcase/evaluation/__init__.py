"""Evaluation of a network: attacks, flags and diagnosis in one call, and the record of it."""
