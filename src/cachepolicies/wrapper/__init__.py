"""The first way in: `CachedDenoiser` around any callable."""
