"""Pictures of what a model does: tiles, tokens, shapes, attention."""
