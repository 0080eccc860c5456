"""Everything that opens pictures and clips, in one place to import from."""

from .clips import probe, read_clip
from .pictures import look, open_picture

__all__ = ["look", "open_picture", "probe", "read_clip"]
