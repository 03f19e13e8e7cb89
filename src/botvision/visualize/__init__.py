"""Pictures: instances, attention, training curves, precision over recall, confusion."""

from botvision.visualize.attention import attention_figure
from botvision.visualize.curves import plot_curves
from botvision.visualize.overlays import contact_sheet, draw_instances

__all__ = ["attention_figure", "contact_sheet", "draw_instances", "plot_curves"]
