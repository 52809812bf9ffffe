"""Reference networks in plain torch, as factories for recipes: ``jetfleet_host.compress.models:resnet18``.

torchvision's wheels cannot be imported beside torch's CPU build. Weights are random; `state` of a factory's caller fills them.
"""

from .detector import small_detector
from .mobilenet import mobilenet_v2
from .resnet import resnet18, resnet20, resnet50, resnet56

__all__ = ["mobilenet_v2", "resnet18", "resnet20", "resnet50", "resnet56", "small_detector"]
