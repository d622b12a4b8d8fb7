"""What the parsers of all verbs share: help that opens with an example, and arguments that name a config or a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Verb = Callable[[argparse.Namespace], int]
"""Runs with the parsed arguments and returns the exit status."""


class Parser(argparse.ArgumentParser):
    """A parser whose help opens with a working example and whose usage errors take one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print what is wrong and where to find help, and exit with 2."""
        self.exit(2, f"error: {message}\nSee {self.prog} --help\n")

    def format_help(self) -> str:
        """Return the help with the example first; argparse would open with the usage."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help()


class Verbs:
    """The parsers of verbs by name, in the order in which they were added."""

    def __init__(self) -> None:
        self.parsers: dict[str, Parser] = {}

    def add(self, name: str, function: Verb, example: str, text: str) -> Parser:
        """Add a verb and return its parser, to which the caller adds arguments."""
        verb = self.parsers[name] = Parser(
            prog=f"choral {name}",
            description=f"Example:\n  {example}\n\n{text}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(verb=function)
        return verb


def with_config(verb: Parser) -> Parser:
    """Add the arguments of a config file and its overrides, and return the parser."""
    verb.add_argument("config", metavar="CONFIG", help="a YAML file")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as train.lr=3e-4")
    return verb


def with_run(verb: Parser) -> Parser:
    """Add the argument that names an existing run, and return the parser."""
    verb.add_argument("run", metavar="RUN", help="a run directory, the name of one under runs/, or its config file")
    return verb
