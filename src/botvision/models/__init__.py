"""The surgery on a ResNet, the paper's named models, and weight loading."""

from botvision.models.ablations import insert_bot, insert_non_local
from botvision.models.botnet import has_position_tables, list_models
from botvision.models.factory import check_model_args, create_model
from botvision.models.structure import new_parts, no_weight_decay, stage_blocks
from botvision.models.surgery import to_botnet
from botvision.models.weights import load_weights

__all__ = [
    "check_model_args",
    "create_model",
    "has_position_tables",
    "insert_bot",
    "insert_non_local",
    "list_models",
    "load_weights",
    "new_parts",
    "no_weight_decay",
    "stage_blocks",
    "to_botnet",
]
