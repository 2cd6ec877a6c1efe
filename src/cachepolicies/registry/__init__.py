"""Names to objects: the registries, and loading the plugins that fill them."""
