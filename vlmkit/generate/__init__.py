"""From a conversation to an answer."""

from ..model.features import FeatureCache
from .answer import generate, stream
from .engine import Engine
from .request import Options, Request
from .sample import Sampling

__all__ = ["Engine", "FeatureCache", "Options", "Request", "Sampling", "generate", "stream"]
