"""Griffe extension: show the values of defaults in the Python reference, not the names that the code gives them."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import Any

import griffe

from mimcl.api import _HOMES


class DefaultValues(griffe.Extension):
    """Replaces a default such as DataConfig.prefetch by its value, in the modules of what `mimcl.api` offers."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Evaluate the defaults of a function that are names."""
        if func.module.path not in _HOMES.values():
            return
        module = import_module(func.module.path)
        for parameter in (one for version in (func, *(func.overloads or ())) for one in version.parameters):
            if isinstance(parameter.default, griffe.ExprName | griffe.ExprAttribute):
                parameter.default = repr(attrgetter(str(parameter.default))(module))
