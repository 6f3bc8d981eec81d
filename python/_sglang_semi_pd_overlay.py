# SPDX-License-Identifier: Apache-2.0
"""Joins Semi-PD to an installed SGLang without touching SGLang's files.

A ``.pth`` file imports this module at every interpreter start, so it needs only
``sys`` until somebody imports SGLang. It puts one finder in front of
``sys.meta_path`` that answers for three names and ignores all others:

``sglang.semi_pd``
    is this distribution's package, wherever it lies (wheel or source tree).
``sglang.srt.server_args``
    is upstream's module; our overlay source then runs *in the same namespace*, so
    that its ``class ServerArgs(ServerArgs)`` is the one which upstream's own
    functions, ``pickle`` and every importer see.
``sglang``
    is upstream's package; before its first import in a process that launches a server
    with Semi-PD flags, ``sglang.semi_pd.launch.preflight`` checks the command line.

Where a wheel was only unzipped, ``.pth`` files are not read. Put the folder on
``PYTHONPATH`` and this line into a ``sitecustomize.py`` there::

    import _sglang_semi_pd_overlay
"""

import sys

_HERE = __file__.rpartition("/")[0]
_PACKAGE = _HERE + "/sglang/semi_pd"
_SERVE_COMMANDS = ("sglang", "sglang.cli.main")
_LAUNCH_COMMANDS = ("sglang.launch_server", "launch_server.py")


def overlay_source():
    """Path of our part of ``server_args``: beside a wheel's, or in the source tree."""
    import os

    shipped = _HERE + "/sglang_semi_pd_overlay/server_args.py"
    in_tree = _HERE + "/sglang/srt/server_args.py"
    return shipped if os.path.exists(shipped) else in_tree


def server_arguments():
    """The arguments this process was started with to serve, or None.

    Reads the original command line, which children made by ``multiprocessing``
    do not share, so only the launching process ever answers.
    """
    command = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if len(command) < 2 or sys.orig_argv[len(command) :] != sys.argv[1:]:
        return None
    program, arguments = command[-1], sys.argv[1:]
    if program.startswith("-m"):
        program = program[2:]
    if "/" in program:
        program = program.rpartition("/")[2]
    if program in _LAUNCH_COMMANDS:
        return arguments
    if program in _SERVE_COMMANDS and arguments[:1] == ["serve"]:
        return arguments[1:]
    return None


def run_preflight(arguments):
    """Check the command line with ``sglang.semi_pd``'s pure modules alone."""
    from importlib import import_module

    with stand_in_for_sglang():
        import_module("sglang.semi_pd.launch.preflight").main(arguments)


class stand_in_for_sglang:  # noqa: N801 - used like a function
    """Within it an empty ``sglang`` stands in for upstream's.

    Importing that is what takes long; our pure modules do without it.
    """

    def __enter__(self):
        from types import ModuleType

        sys.modules["sglang"] = stand_in = ModuleType("sglang")
        stand_in.__path__ = [_HERE + "/sglang"]

    def __exit__(self, *error):
        del sys.modules["sglang"]


def _semi_pd_spec():
    from importlib.util import spec_from_file_location

    return spec_from_file_location(
        "sglang.semi_pd",
        _PACKAGE + "/__init__.py",
        submodule_search_locations=[_PACKAGE],
    )


def _extend_server_args(module):
    """Run our overlay in upstream's namespace; undo it all if it does not fit."""
    path = overlay_source()
    upstream = dict(module.__dict__)
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)
        module.__doc__ = upstream["__doc__"]
    except Exception as error:  # noqa: BLE001 - plain SGLang must start anyway
        module.__dict__.clear()
        module.__dict__.update(upstream)
        import warnings

        warnings.warn(
            f"Semi-PD flags are not available: {path} does not fit this SGLang "
            f"({type(error).__name__}: {error})",
            RuntimeWarning,
            stacklevel=2,
        )


def _bind_semi_pd(module):
    """Give ``sglang`` the attribute an import after it would have set."""
    if "sglang.semi_pd" in sys.modules:
        module.semi_pd = sys.modules["sglang.semi_pd"]


class _ThenRun:
    """A loader that lets another one load the module, then calls ``after``."""

    def __init__(self, loader, after):
        self._loader, self._after = loader, after

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        self._after(module)

    def __getattr__(self, name):
        return getattr(self._loader, name)


class SemiPDFinder:
    """The one entry we put into ``sys.meta_path``."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if not name.startswith("sglang"):
            return None
        if name == "sglang.semi_pd":
            return _semi_pd_spec()
        if name == "sglang.srt.server_args":
            return cls._upstream_spec(name, path, _extend_server_args)
        if name == "sglang":
            arguments = server_arguments()
            if arguments is not None and cls._may_be_semi_pd(arguments):
                run_preflight(arguments)
                return cls._upstream_spec(name, path, _bind_semi_pd)
        return None

    @staticmethod
    def _may_be_semi_pd(arguments):
        """Whether any flag could be ours: a plain launch loads nothing of ours."""
        ours = ("--enable-semi", "--enable-slo", "--enable-unified-mem")
        return any(argument.startswith(ours) for argument in arguments)

    @staticmethod
    def _upstream_spec(name, path, after):
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRun(spec.loader, after)
        return spec


def install():
    """Put the finder in front, once per interpreter."""
    if SemiPDFinder not in sys.meta_path:
        sys.meta_path.insert(0, SemiPDFinder)


install()
