"""The model: parts put together, rehearsed on the meta device, and run."""
