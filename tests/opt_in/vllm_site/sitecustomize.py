"""Lets a torchvision that was built for CUDA be imported beside a torch that was not, as registries may pair them.

Its compiled operators are missing then, and its import asks for two of them. Processors use none.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define()


def _define():
    import torch

    with open(find_spec("torchvision").submodule_search_locations[0] + "/version.py") as opened:
        if torch.version.cuda is not None or "+cu" not in opened.read():
            return
    Missing.operators = torch.library.Library("torchvision", "DEF")  # they are there as long as this is
    for operator in ("nms", "qnms"):
        Missing.operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, Missing())
