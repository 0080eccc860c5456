"""Everything that opens pictures and clips, in one place to import from."""

from .clips import Clip, Frames, probe, read_clip
from .pictures import Picture, look, open_picture, picture_id

__all__ = ["Clip", "Frames", "Picture", "look", "open_picture", "picture_id", "probe", "read_clip"]
