"""Denoisers to test on: an exact analytic one and four small trained networks, with their data."""
