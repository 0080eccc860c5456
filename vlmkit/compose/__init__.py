"""YAML layers -> one typed preset: find, read, merge, bind. Nothing here imports torch."""
