"""Weights on disk: headers first, compared on paper, then read straight to the device."""
