"""The command line: one function per command; its signature gives the arguments, its docstring
their help.

Positional parameters of the function are positional arguments, keyword-only ones are options:
``batch_size`` is ``--batch-size``, a ``False`` default makes a flag, and the fields of a dataclass
are options. The module of a command is imported when that command is run, so ``cmmfnet --help`` is
quick.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING

from cmmfnet import __version__
from cmmfnet.files.errors import DISK_FULL, UserError

if TYPE_CHECKING:
    from cmmfnet.training.recipe import Recipe


@dataclass(frozen=True)
class Command:
    """A row of the table of commands; ``target`` is "module:function"."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "colorize": Command("cmmfnet.colorizer.colorize:colorize", "turn thermal pictures into colour"),
    "archive": Command(
        "cmmfnet.archive.archive:archive",
        "colour any number of frames, resumable, on a cluster too",
    ),
    "live": Command("cmmfnet.colorizer.live:live", "colour a thermal camera as it comes"),
    "inspect": Command(
        "cmmfnet.thermal.inspection:inspect",
        "print what a thermal file holds, temperatures included",
    ),
    "demo": Command(
        "cmmfnet.colorizer.demo:demo",
        "render sample frames, colour them and write a page with them",
    ),
    "serve": Command(
        "cmmfnet.serve.serve:serve", "colour pictures over HTTP, for browsers and programs"
    ),
    "prepare": Command(
        "cmmfnet.data.prepare.prepare:prepare", "bring a raw data set into the project's layout"
    ),
    "captions": Command(
        "cmmfnet.data.captions:captions", "write and check the captions of a data set"
    ),
    "train": Command("cmmfnet.training.train:train", "train or fine-tune a model by a recipe"),
    "evaluate": Command(
        "cmmfnet.evaluation.evaluate:evaluate",
        "score a model, a run or a folder of predictions on pairs",
    ),
    "compare": Command(
        "cmmfnet.evaluation.compare:compare",
        "compare models and folders of predictions in one report",
    ),
    "explain": Command(
        "cmmfnet.colorizer.explain:explain", "show where in a frame each word of a text holds"
    ),
    "export": Command("cmmfnet.export.export:export", "write a model as an ONNX file"),
    "scenes": Command(
        "cmmfnet.data.scenes.scenes:scenes", "render pairs to train on; needs no data"
    ),
    "repaint": Command(
        "cmmfnet.data.made.repainted:write_repainted",
        "render scenes in other colours, with the words for them",
    ),
    "found-labels": Command(
        "cmmfnet.training.found_labels:write_found_labels",
        "write label maps that a model finds in the thermal frames of pairs",
    ),
    "soften": Command(
        "cmmfnet.training.softened:write_softened",
        "write pairs whose large areas are half as bright as a second model makes them",
    ),
    "distil": Command(
        "cmmfnet.training.distilled:write_distilled",
        "write pairs with a model's colours, to train a smaller one on",
    ),
    "import-weights": Command(
        "cmmfnet.weights.imported:import_weights",
        "convert a checkpoint of a method's official code to a model file",
    ),
    "models": Command(
        "cmmfnet.training.models:models", "list the known models and methods, or describe a model"
    ),
}

SHORT = {"-o": "--out", "--from": "--start-from"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 1 (some files failed, or the system refused); 2 (the request makes no
        sense as typed); 130 (Ctrl-C).
    """
    try:
        try:
            return _status(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as error:
        usual = "Finished files are complete; run the same command to continue"
        print(f"cmmfnet: interrupted. {str(error) or usual}", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        full = isinstance(error, OSError) and error.errno in DISK_FULL and not error.filename
        advice = "; free some space and run the same command again" if full else ""
        print(f"cmmfnet: error: {error}{advice}", file=sys.stderr)
        return 1 if isinstance(error, OSError) else 2


def _status(argv: list[str]) -> int:
    """The exit status of a command whose errors :func:`main` prints."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"cmmfnet {__version__}")
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        known = ", ".join(COMMANDS)
        hint = f"did you mean {close[0]!r}? " if close else ""
        print(f"cmmfnet: error: unknown command {name!r}; {hint}Commands: {known}", file=sys.stderr)
        return 2

    # torch then uses large memory pages if the system allows: 20 to 33 % less time per frame on the
    # CPU
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    module, function_name = COMMANDS[name].target.split(":")
    function = getattr(importlib.import_module(module), function_name)
    # the parser lists the fields of a recipe for the help only; training/recipe.py reads them
    parser = make_parser(name, function, recipe="-h" in arguments or "--help" in arguments)
    if hasattr(sys.stdout, "reconfigure"):  # file names need not be valid UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    formatwarning = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"cmmfnet: warning: {message}\n"
    try:
        positional, named = _values(parser, function, arguments)
        result = function(*positional, **named)
    except argparse.ArgumentError as error:
        message = plain_message(error, parser)
        print(f"cmmfnet {name}: error: {message}; see cmmfnet {name} --help", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        warnings.formatwarning = formatwarning
    return getattr(result, "exit_status", 0)


def _values(parser, function: Callable, arguments: list[str]) -> tuple[list, dict]:
    """Positional and named arguments of ``function`` for the typed ``arguments``."""
    hints = typing.get_type_hints(function)
    arguments, recipe = _normal(arguments), {}
    if "config" in hints and not {"-h", "--help"}.intersection(arguments):
        arguments, recipe["config"] = _take_recipe(arguments)
    # renamed in jsonargparse 4.49
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    named = instantiate(parser.parse_args(arguments)).as_dict() | recipe
    positional = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += named.pop(parameter.name)
        elif _is_options(parameter, hints):
            kind = hints[parameter.name]
            named[parameter.name] = kind(**{f.name: named.pop(f.name) for f in fields(kind)})
    return positional, named


def _is_options(parameter: inspect.Parameter, hints: dict) -> bool:
    """Whether a parameter is a dataclass whose fields are options of the command.

    The exception is ``config``, whose fields are read from a file and nested under ``--config``.
    """
    return is_dataclass(hints[parameter.name]) and parameter.name != "config"


def make_parser(name: str, function: Callable, *, recipe: bool = True):
    """The ``jsonargparse.ArgumentParser`` of a function's signature, with or without ``config``."""
    import jsonargparse

    text, notes = _docstring(function)

    class Formatter(jsonargparse.DefaultHelpFormatter):
        """Defaults in the help, without types: ``(default: val)``."""

        def _get_help_string(self, action: argparse.Action) -> str:
            note = action.help or ""
            silent = any(action.default is each for each in (None, False, argparse.SUPPRESS))
            if silent or "(default" in note:
                return note
            return f"{note} (default: {action.default})".replace("%", "%%")

    parser = jsonargparse.ArgumentParser(
        prog=f"cmmfnet {name}",
        description=text,
        exit_on_error=False,
        formatter_class=Formatter,
    )
    hints = typing.get_type_hints(function)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if _is_options(parameter, hints):
            kind = hints[parameter.name]
            parameters += [
                each.replace(kind=each.KEYWORD_ONLY)
                for each in inspect.signature(kind).parameters.values()
            ]
            hints |= typing.get_type_hints(kind)
            notes |= _docstring(kind)[1]
        elif recipe or parameter.name != "config":
            parameters.append(parameter)
    for parameter in parameters:
        kind, note = hints[parameter.name], notes.get(parameter.name, "")
        option = "--" + parameter.name.replace("_", "-")
        optional = parameter.default is not inspect.Parameter.empty
        shorts = [short for short, long in SHORT.items() if long == option]
        if parameter.kind is parameter.VAR_POSITIONAL:
            parser.add_argument(parameter.name, type=kind, nargs="+", help=note)
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            extra = {"nargs": "?", "default": parameter.default} if optional else {}
            parser.add_argument(parameter.name, type=kind, help=note, **extra)
        elif is_dataclass(kind):
            extra = {"default": parameter.default} if optional else {"required": True}
            parser.add_argument(f"--{parameter.name}", type=kind, help=note, **extra)
        elif kind is bool and parameter.default is False:
            parser.add_argument(option, action="store_true", help=note)
        elif optional:
            parser.add_argument(option, *shorts, type=kind, default=parameter.default, help=note)
        else:
            parser.add_argument(*shorts, option, type=kind, required=True, help=note)
    return parser


def _normal(arguments: list[str]) -> list[str]:
    """``--span -10,35`` -> ``--span=-10,35``, ``--text -grass`` -> ``--text=-grass``, because
    argparse would read a value that starts with a minus as an option."""
    out: list[str] = []
    for argument in arguments:
        number = (
            re.fullmatch(r"-[\d.][\d.,e+-]*", argument)
            and out
            and re.fullmatch(r"--[a-z][\w.-]*", out[-1])
        )
        if number or (
            out and out[-1] == "--text" and re.match(r"-[^-]", argument) and argument not in SHORT
        ):
            out[-1] += f"={argument}"
        else:
            out.append(argument)
    return out


def _take_recipe(arguments: list[str]) -> tuple[list[str], Recipe]:
    """The other arguments, and the recipe of ``--config NAME --config.FIELD VALUE``.

    ``--from MODEL`` without a configuration takes ``finetune``.
    """
    from cmmfnet.training.recipe import find_config, read_recipe

    others: list[str] = []
    name, changes, waiting = None, {}, iter(arguments)
    for argument in waiting:
        key, equals, value = argument.partition("=")
        if key != "--config" and not key.startswith("--config."):
            others.append(argument)
            continue
        value = value if equals else next(waiting, None)
        if value is None:
            raise UserError(f"{key} is the last argument; expected a value after it")
        if key == "--config":
            name = value
        else:
            changes[key.removeprefix("--config.")] = value
    if name is None and any(a.partition("=")[0] in ("--from", "--start-from") for a in others):
        name = "finetune"
    if name is None:
        raise UserError("--config is missing; expected a YAML file or a name, such as tiny")
    return others, read_recipe(find_config(name), changes)


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "Path": "a path",
    "dict": "fields with values",
    "list": "a list",
    "tuple": "a list",
}


def plain_message(error: argparse.ArgumentError, parser) -> str:
    """A complaint of jsonargparse in terms of the command line.

    "--seed is 'q'; expected a whole number" instead of types, unions and parser keys; for an
    unknown option the one with the most similar name.
    """
    message = re.sub(r":?\s*\n\s*(- )?", ": ", str(error))
    if unknown := re.fullmatch(r"[Uu]nrecognized arguments: (.*)", message):
        return _unknown(unknown[1], parser)
    key = re.search(r'Parser key "([^"]+)"', message)
    value = re.search(r"(?:Got value|Given value): (.*?)$", message)
    if key is None or value is None:
        return message
    kinds = re.findall(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])", message)
    expected = []
    for kind, choices in kinds:
        if choices:
            expected.append("one of " + ", ".join(re.findall(r"'([^']*)'", choices) or [choices]))
        elif kind != "NoneType":
            expected.append(_EXPECTED.get(kind.rpartition(".")[2], f"a {kind}"))
    if not expected:
        return message
    option = "--" + key[1].replace("_", "-")
    place = option if option in parser._option_string_actions else key[1].upper()
    return f"{place} is {value[1]!r}; expected {' or '.join(dict.fromkeys(expected))}"


def _unknown(arguments: str, parser) -> str:
    """The message for arguments that a command does not have."""
    options = [o for o in parser._option_string_actions if o.startswith("--")]
    if arguments.startswith("-") and (late := [o for o in options if o in arguments.split()]):
        return f"{late[0]} comes after --, behind which only names are; write options before it"
    typed = [word.partition("=")[0] for word in arguments.split() if word.startswith("--")]
    hints = [
        f"did you mean {near[0]}?"
        for option in typed
        if (near := difflib.get_close_matches(option, options, n=1))
    ]
    if typed:
        return "; ".join([f"there is no option {', '.join(typed)}", *hints])
    return (
        f"there is no place for {arguments}; write names with spaces, and globs (*.png), in quotes"
    )


def _docstring(function: Callable) -> tuple[str, dict[str, str]]:
    """The text before ``Args:`` (``Attributes:`` of a class), and the note on each argument, as
    one line."""
    text, _, rest = re.sub(
        "\nAttributes:\n", "\nArgs:\n", inspect.getdoc(function) or ""
    ).partition("\nArgs:\n")
    notes: dict[str, str] = {}
    name = None
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break  # the next section
        if match := re.match(r"    (\w+): (.*)", line):
            name, notes[match[1]] = match[1], match[2]
        elif name and line.strip():
            notes[name] += " " + line.strip()
    return text.strip(), {
        key: value.replace("``", "").replace("%", "%%") for key, value in notes.items()
    }


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message is all that a user needs; other errors keep their traceback."""
    missing_extra = isinstance(error, ImportError) and "pip install" in str(error)
    return isinstance(error, UserError | OSError) or missing_extra


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    return f"""usage: cmmfnet COMMAND ...

Thermal-infrared pictures turned into colour, guided by text.

{rows}

  cmmfnet COMMAND --help   the arguments of a command
  cmmfnet --version

  cmmfnet colorize frames/ -o colour/ --text "a road with cars, trees and a brick house"
"""


if __name__ == "__main__":
    sys.exit(main())
