"""Help in sections, as plain text: the same in a pipe as on a terminal."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Panels(TyperGroup):
    """Lists its commands under their rich_help_panel; those without one come last."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Overrides what typer does without rich: one list of all."""
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        width = max(map(len, shown), default=0)
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in shown.items():
            panel = getattr(command, "rich_help_panel", None) or "Others"
            text = command.get_short_help_str(formatter.width - width - 6)
            panels.setdefault(panel, []).append((name.ljust(width), text))
        for panel in sorted(panels, key="Others".__eq__):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])
