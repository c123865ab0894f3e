"""`lace`: the command and its verbs."""

from __future__ import annotations

import sys

import typer

from lace.cli import bench, data, evaluate, graft, info, observe, plot, serve, solve, train, view
from lace.data.pipeline.text import printable

app = typer.Typer(
    name="lace",
    help="Reasoning threads of one prompt that read each other while they decode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("solve")(solve.solve)
app.command("eval", no_args_is_help=True)(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("graft")(graft.graft)
app.command("info")(info.info)
app.command("plot")(plot.plot)
app.command("observe")(observe.observe)
app.command("view")(view.view)
app.command("serve")(serve.serve)
app.add_typer(data.app, name="data")
# Whatever is no option of the verb is a value for its config, --section.key=value.
app.command("train", context_settings={"ignore_unknown_options": True})(train.train)


def main() -> None:
    """Runs the command; whatever the user can mend is told in one line."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        line = " ".join(printable(str(error)).split())  # it may quote a server or a file
        typer.echo(f"lace: error: {line}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
