"""The command line as a page: every verb, from what typer knows of it."""

from __future__ import annotations

import inspect
from typing import Any

from tables import table


def command_line(made: str) -> str:
    """Every verb with its arguments and options."""
    import typer.main

    from evomerge.cli import app

    group: Any = typer.main.get_command(app)
    lines = ["# Command line", "", made, "`evomerge VERB --help` prints the same.", ""]
    rows = [
        (f"[`{name}`](#{name})", (verb.help or "").split("\n", 1)[0])
        for name, verb in group.commands.items()
    ]
    lines += [table(("verb", "what it does"), rows)]
    for name, verb in group.commands.items():
        arguments = [p for p in verb.params if p.param_type_name == "argument"]
        usage = " ".join(_usage(argument) for argument in arguments)
        lines += [f"## {name}", "", f"`evomerge {name} [OPTIONS] {usage}".rstrip() + "`", ""]
        lines += [inspect.cleandoc(verb.help or ""), ""]
        rows = [(_names(one), _default(one), one.help or "") for one in verb.params]
        if rows:
            lines.append(table(("argument or option", "default", "meaning"), rows))
    return "\n".join(lines) + EXIT_CODES


EXIT_CODES = """
## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | a run of a sweep failed |
| 2 | a file or an argument says something that cannot be done |
| 3 | a model cannot be read, or does not fit the others |
| 4 | another driver works on the run folder |
| 5 | the ledger is damaged, or contradicts its replay |
| 6 | the disk is full |
| 7 | no workers are left |
| 130, 143 | interrupted; `evomerge resume` goes on |
"""


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _names(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{one.metavar or one.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in [*one.opts, *one.secondary_opts])
    if one.is_flag:
        return names
    told = str(one.type_descriptor.annotation)
    kind = "NUMBER" if "int" in told or "float" in told else "PATH" if "Path" in told else "TEXT"
    return f"{names} {one.metavar or kind}"


def _default(one: Any) -> str:
    if getattr(one, "required", False):
        return "required"
    if isinstance(one.show_default, str):
        return one.show_default
    value = one.default
    if value is None or value is False or value == [] or callable(value):
        return "-"
    return f"`{value}`"
