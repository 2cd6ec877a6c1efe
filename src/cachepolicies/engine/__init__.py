"""The one control flow of every policy and every way in."""
