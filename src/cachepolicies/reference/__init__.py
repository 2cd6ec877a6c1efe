"""Denoisers to test on: an exact analytic one and two small trained transformers, with their data."""
