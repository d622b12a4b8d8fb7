"""Where verbs print: results on stdout, logs and progress on stderr."""

from __future__ import annotations

from rich.console import Console

stdout, stderr = Console(emoji=False), Console(stderr=True, emoji=False)  # without emoji: H:M:S is text
