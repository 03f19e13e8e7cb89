"""The surgery on a ResNet, the paper's named models, and loading ImageNet weights."""

from botvision.models.ablations import insert_bot, insert_non_local
from botvision.models.botnet import BOTNETS, check_model_args, create_model, list_models
from botvision.models.surgery import to_botnet
from botvision.models.weights import load_weights

__all__ = [
    "BOTNETS",
    "check_model_args",
    "create_model",
    "insert_bot",
    "insert_non_local",
    "list_models",
    "load_weights",
    "to_botnet",
]
