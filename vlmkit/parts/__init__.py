"""The built-in parts; each folder is a plugin like any other."""
