"""MoR: align one vision-language model with the preferences of many, by a mixture of their reward models.

``align`` is the method, a round after the other; what it takes and gives is named here. Nothing heavy is imported before it is
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mor.alignment.rounds import Round, align
    from mor.config import Boundary, GrpoSettings, Lora, RouterSettings
    from mor.data.public import PublicPrompt
    from mor.federation.local import LocalClient
    from mor.federation.server import Settings

__all__ = ["Boundary", "GrpoSettings", "LocalClient", "Lora", "PublicPrompt", "Round", "RouterSettings", "Settings", "align"]

_HOMES = {
    "mor.alignment.rounds": ("Round", "align"),
    "mor.config": ("Boundary", "GrpoSettings", "Lora", "RouterSettings"),
    "mor.data.public": ("PublicPrompt",),
    "mor.federation.server": ("Settings",),
    "mor.federation.local": ("LocalClient",),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'mor' has no attribute {name!r}")
    return getattr(import_module(home), name)
