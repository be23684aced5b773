"""As which text does a function of a feature repo travel, so that it stands alone where it runs?"""

import ast
import builtins
import dis
import inspect
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any

from featurestore.errors import DefinitionError
from featurestore.plan import Function

_MODULES = frozenset({"numpy", "pandas"}) | sys.stdlib_module_names
"""Whose names a function may take from its module: what every process of this product has installed."""


def extract_source(function: Callable[..., Any]) -> Function:
    """A function of a feature repo as source text that stands alone: dedented, without decorators.

    Modules of the standard library, numpy and pandas that it takes from its module, or names from them, become import
    lines at the top. Annotations are not evaluated. Any other name from outside (a constant, a helper, an enclosing
    function's variable) is refused with DefinitionError, by name.
    """
    where = f"function {getattr(function, '__name__', function)!r}"
    if not isinstance(function, types.FunctionType):
        raise DefinitionError(f"{where}: expected a Python function, found {type(function).__name__}")
    try:
        text = textwrap.dedent("".join(inspect.getsourcelines(function.__code__)[0]))
        node = ast.parse(text).body[0]
    except (OSError, SyntaxError, IndexError) as error:
        raise DefinitionError(
            f"{where}: its source cannot be read ({error}); define it with `def` in a file"
        ) from error
    if not isinstance(node, ast.FunctionDef):
        raise DefinitionError(f"{where}: define it with `def` (no lambda, no async)")
    if function.__code__.co_freevars:
        raise DefinitionError(
            f"{where} uses {', '.join(function.__code__.co_freevars)} of the function around it; pass it as a literal"
        )
    names = {n for n in _global_names(function.__code__) if n != node.name} | _default_names(node)
    imports = [
        _import_line(where, name, function.__globals__[name])
        for name in sorted(names)
        if name in function.__globals__ and name != "__builtins__"
    ]
    unknown = sorted(name for name in names if name not in function.__globals__ and not hasattr(builtins, name))
    if unknown:
        raise DefinitionError(f"{where} uses {', '.join(unknown)}, which nothing defines")
    body = text.splitlines()[node.lineno - 1 : node.end_lineno]
    # Annotations may name types of Feast or of typing: they are kept as text.
    lines = ["from __future__ import annotations", *imports, "", *body]
    return Function(name=node.name, source="\n".join(lines) + "\n")


def _global_names(code: types.CodeType) -> set[str]:
    names = {
        str(step.argval)
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _default_names(node: ast.FunctionDef) -> set[str]:
    defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
    return {name.id for default in defaults for name in ast.walk(default) if isinstance(name, ast.Name)}


def _import_line(where: str, name: str, value: object) -> str:
    if isinstance(value, types.ModuleType):
        if value.__name__.partition(".")[0] in _MODULES:
            return f"import {value.__name__} as {name}"
    else:
        module, inner = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if (
            isinstance(module, str)
            and module.partition(".")[0] in _MODULES - {"__main__"}
            and getattr(sys.modules.get(module), inner, None) is value
        ):
            return f"from {module} import {inner} as {name}"
    raise DefinitionError(
        f"{where} uses {name!r} ({type(value).__name__}) of its module; where it runs there is no such name: "
        "move it into the function (modules of the standard library, numpy and pandas may be imported outside)"
    )
