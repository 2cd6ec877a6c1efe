"""The built-in plugin: one line for everything that comes with the library."""
