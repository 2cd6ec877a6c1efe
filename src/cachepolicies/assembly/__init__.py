"""Putting together policy, profile, substitute and site, for both ways in."""
