"""What every part stands on: errors, checked settings, norms, files; nothing here knows of caching."""
