"""What all verbs share: their parsers, their consoles, and the arguments that name a config or a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

Verb = Callable[[argparse.Namespace], int]
"""Does what its parsed arguments say and returns the exit status; the docstring is its line in the help."""
stdout, stderr = Console(emoji=False), Console(stderr=True, emoji=False)  # H:M:S is no emoji


class Parser(argparse.ArgumentParser):
    """Help that opens with a working example, and one line for a wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Print the mistake and where help is, and exit with 2."""
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
    """The parser of each verb, by name, in the order in which they were added."""

    def __init__(self) -> None:
        self.parsers: dict[str, Parser] = {}

    def add(self, name: str, function: Verb, example: str, text: str) -> Parser:
        """Add a verb and return its parser, for its arguments; its epilog is the verb in one line."""
        verb = self.parsers[name] = Parser(
            prog=f"choral {name}",
            description=f"Example:\n  {example}\n\n{text}",
            epilog=(function.__doc__ or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(verb=function)
        return verb


def with_config(verb: Parser) -> Parser:
    """Let a verb take a config file and overrides."""
    verb.add_argument("config", metavar="CONFIG", help="a YAML file")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.lr=3e-4; the last word")
    return verb


def with_run(verb: Parser) -> Parser:
    """Let a verb take a run that exists."""
    verb.add_argument("run", metavar="RUN", help="a run folder, the name of one under runs/, or its config file")
    return verb
