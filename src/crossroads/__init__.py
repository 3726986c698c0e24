"""Routing to experts at every scale: compare routers in one arena, fit the best, serve it.

Importing this package loads nothing heavy. Each room is imported on its own, for instance
``from crossroads.prompts import OutcomeTable`` or ``from crossroads.core import assignment``.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
