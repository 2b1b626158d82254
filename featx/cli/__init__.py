"""The command ``featx``: words in, words out.

In: what was typed. Out: text or JSON, and an exit code. One module a command, which is loaded when
the command is called; `main` turns errors and signals into one line. A command puts options into a
plan and prints what comes back: it pairs nothing, fits nothing and judges nothing. Nothing may
import this room.
"""

from __future__ import annotations

from featx.cli.main import main

__all__ = ["main"]
