"""Finds and loads the function that a `bind` names."""

import os
import sys
import types
from functools import partial

from . import frames

#: The package that a function's files are modules of.
PACKAGE = "function"

NOT_CALLABLE = "Function signature invalid. Did you forget to export a 'main' function?"


class BindError(Exception):
    """Why code cannot be served: a reason of `bind failed` and its complete text."""

    def __init__(self, reason, message):
        super().__init__(message)
        self.reason = reason
        self.message = message


def load(code_dir, entrypoint, environment):
    """Returns the function's `main`."""
    try:
        _adopt(environment)
        path = os.path.normpath(os.path.join(code_dir, entrypoint))
        if not entrypoint or not _is_within(path, code_dir) or not os.path.isfile(path):
            raise BindError(
                frames.NO_ENTRYPOINT,
                f"Failed to load entrypoint, file {entrypoint} does not exist.",
            )
        _extend_path(code_dir)
        sys.argv = [path]
        main = getattr(_import(path, code_dir), "main", None)
    except BindError:
        raise
    except BaseException as error:
        raise _bind_error(error, code_dir) from error
    if not callable(main):
        raise BindError(frames.NO_CALLABLE, NOT_CALLABLE)
    return main


def is_asynchronous(main):
    """Whether calling `main` makes something that an asyncio loop must run."""
    # Not inspect.iscoroutinefunction: importing inspect takes longer than loading most functions.
    while isinstance(main, partial):
        main = main.func
    code = getattr(main, "__code__", None) or getattr(type(main).__call__, "__code__", None)
    # CO_COROUTINE and CO_ASYNC_GENERATOR; a bound method lends its function's code.
    return code is not None and bool(code.co_flags & 0x280)


def _adopt(environment):
    os.environ.update(environment)
    if "TZ" in environment:
        import time

        time.tzset()


def _is_within(path, directory):
    return path.startswith(os.path.join(os.path.normpath(directory), ""))


def _extend_path(code_dir):
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = os.path.join(code_dir, "runtime-env")
    for packages in (installed, os.path.join(installed, "lib", version, "site-packages")):
        if os.path.isdir(packages):
            import site

            site.addsitedir(packages)
    sys.path.insert(0, code_dir)
    sys.path.append(os.path.dirname(os.path.normpath(code_dir)))


def _import(path, code_dir):
    package = types.ModuleType(PACKAGE)
    package.__path__ = [code_dir]
    sys.modules[PACKAGE] = package

    stem, extension = os.path.splitext(os.path.relpath(path, code_dir))
    parts = stem.split(os.sep)
    if extension == ".py" and not any("." in part for part in parts):
        from importlib import import_module

        return import_module(".".join([PACKAGE, *parts]))
    return _import_file(path, ".".join([PACKAGE, *(part.replace(".", "_") for part in parts)]))


def _import_file(path, name):
    """Imports a file whose name is no module name."""
    from importlib.machinery import ModuleSpec, SourceFileLoader
    from importlib.util import module_from_spec

    spec = ModuleSpec(name, SourceFileLoader(name, path), origin=path)
    spec.has_location = True
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _bind_error(error, code_dir):
    if isinstance(error, SyntaxError):
        file = error.filename or "<unknown>"
        if _is_within(file, code_dir):
            file = os.path.relpath(file, code_dir)
        message = f"Syntax error in {file}:{error.lineno}: {error.msg}"
        return BindError(frames.SYNTAX_ERROR, message)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return BindError(frames.MISSING_MODULE, f"Module not found: {error.name}")
    from . import reply

    message = f"Failed to load module: {error}\n{reply.describe(error)}"
    return BindError(frames.LOAD_ERROR, message)
