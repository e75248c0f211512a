"""Functions of ``losskernel`` as steps of the workflow, read from the source without importing it.

Which source files a function depends on is read from the import statements: a digest of their
content is a parameter of the rule that calls it, so that changing a module, or a template beside
it, re-runs exactly the rules that use it. Dependence starts at one function: of its own module it
takes only the imports that the function (or a helper or class it names, there) uses; from each
imported module on, it takes all.
"""

from __future__ import annotations

import ast
import hashlib
import shlex
import symtable
from functools import cache
from pathlib import Path

PACKAGE = "losskernel"
ROOT = Path(__file__).parents[2] / "src"
TEMPLATES = (".html", ".css", ".js")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.AST) -> dict[str, str]:
    """Local name -> module of the package, for every import in ``tree``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                target = submodule if _file(submodule) else node.module
                found[alias.asname or alias.name] = target
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    found[alias.asname or PACKAGE] = alias.name
    return found


def _templates(path: Path) -> set[Path]:
    """Files of other kinds beside a module that are called as it is, or that it names."""
    constants = (node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant))
    named = {value for value in constants if isinstance(value, str)}
    return {
        file
        for file in path.parent.iterdir()
        if file.suffix in TEMPLATES and (file.stem == path.stem or file.name in named)
    }


def _names(*nodes: ast.AST) -> set[str]:
    return {child.id for node in nodes for child in ast.walk(node) if isinstance(child, ast.Name)}


@cache
def _scopes(path: Path) -> dict[str, symtable.SymbolTable]:
    """Scopes of the functions and classes at the top of a module."""
    table = symtable.symtable(path.read_text(), str(path), "exec")
    return {child.get_name(): child for child in table.get_children()}


def _globals(scope: symtable.SymbolTable) -> set[str]:
    """Names that ``scope`` and the scopes in it take from the module, not from their own locals."""
    names = {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
    return names.union(*map(_globals, scope.get_children()))


def _uses(path: Path, name: str, node: ast.AST) -> set[str]:
    """Names of its module that the definition ``node`` of ``name`` uses."""
    if isinstance(node, ast.FunctionDef):
        outside = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    elif isinstance(node, ast.ClassDef):
        outside = [*node.decorator_list, *node.bases]
    else:
        return _names(node)
    return _globals(_scopes(path)[name]) | _names(*outside)


def _used_imports(path: Path, function: str) -> set[str]:
    """Modules that ``function`` uses, directly or through other definitions of its own module."""
    tree = _tree(path)
    definitions: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions |= {name: node for target in targets for name in _names(target)}
    if function not in definitions:
        raise ValueError(f"{path}: has no function '{function}'")
    imports, seen, todo, modules = _imports(tree), set(), [function], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in imports:
            modules.add(imports[name])
        elif name in definitions:
            todo += _uses(path, name, definitions[name])
            modules |= set(_imports(definitions[name]).values())
    return modules


def sources(function: str) -> list[str]:
    """Source files behind ``module.function`` (without the package name), sorted.

    Raises:
        ValueError: there is no such module or function.
    """
    module, _, name = function.rpartition(".")
    path = _file(f"{PACKAGE}.{module}")
    if path is None:
        raise ValueError(f"no module {PACKAGE}.{module}")
    files, todo = {path}, list(_used_imports(path, name))
    while todo:
        found = _file(todo.pop())
        if found is None or found in files:
            continue
        files.add(found)
        todo += _imports(_tree(found)).values()
    files = files.union(*map(_templates, files))
    return sorted(str(file.relative_to(ROOT.parent)) for file in files)


def digest(function: str) -> str:
    """The function's name, and 16 hex digits that change with the source files behind it."""
    found = hashlib.sha256()
    for name in sources(function):
        found.update(name.encode() + b"\0" + (ROOT.parent / name).read_bytes())
    return f"{function} {found.hexdigest()[:16]}"


def parameters(function: str) -> list[str]:
    """Names of a function's parameters."""
    module, _, name = function.rpartition(".")
    for node in _tree(_file(f"{PACKAGE}.{module}")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    raise ValueError(f"{module}: has no function '{name}'")


def command_line(function: str, options: dict[str, object]) -> str:
    """The command that calls a function, every word quoted for the shell.

    Args:
        function: ``experiments.<module>.<function>`` or ``commands.<module>.<function>``.
        options: value, or list of values, of each parameter; those that are None, False or empty
            are left out, and True is an option without a value.

    Raises:
        ValueError: an option is no parameter of the function.
    """
    known = parameters(function)
    package, _, rest = function.partition(".")
    group, _, command = rest.rpartition(".")
    words = ["losskernel", *(["workflow"] if package == "experiments" else []), group]
    words.append(command.replace("_", "-"))
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{function} has no parameter '{name}'; it has {', '.join(known)}")
        values = [value] if isinstance(value, str | int | float) else list(value or [])
        if values and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else map(str, values)
    return shlex.join(words)
