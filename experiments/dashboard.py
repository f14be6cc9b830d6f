"""Show the report's pictures of all runs in a folder in the browser: choose, compare, follow a running one.

python -m experiments.dashboard outputs/
"""

from __future__ import annotations

import argparse
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from dash import Dash, Input, Output, State, dcc, html, no_update
from dash.dash_table.DataTable import DataTable
from flask import Response, abort, request

from experiments.common.entry import one_line_errors
from experiments.common.escape import visible
from experiments.common.tables import stdout
from experiments.pictures.leaderboard import Leaderboard, leaderboard_page
from experiments.pictures.page import ASSETS, Contents, csv_link, page, reader_page
from experiments.pictures.picture import Picture, Table, shown
from experiments.pictures.style import CONFIG
from specdec.errors import InputError
from specdec.runs.read import Run, run_folders

HOST = "127.0.0.1"  # this machine only
PERIOD_MS = 1000
HEADERS = {
    # Dash needs inline scripts and styles; no other site may be fetched from, sent to or framed
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
COLUMNS = {
    "started": "started",
    "run": "folder",
    "target": "target",
    "drafter": "drafter",
    "status": "status",
    "tau": "τ (tokens/step)",
    "acceptance": "acceptance rate",
    "speed": "tokens/s",
    "speedup": "speedup",
}


class Library:
    """The runs in a folder, by their path inside it. Nothing outside the folder is read."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError("folder", expected="a folder of runs", got=repr(str(root)), fix="check the path")
        self._root = root.resolve()
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()  # every request has its own thread

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the list of runs, without reading their steps."""
        with self._lock:
            names = [str(folder.relative_to(self._root)) for folder in run_folders(self._root)]
            known = {name: self._runs.get(name) or Run(self._root / name) for name in names}
            self._runs = {name: run for name, run in known.items() if self._inside(run)}
            return [{"id": name, **self._listed(name, run)} for name, run in self._runs.items()]

    def _inside(self, run: Run) -> bool:
        """Return whether no file of the run is a link that leads out of the folder.

        This is checked before each reading, because a file can be replaced by a link.
        """
        try:
            return all(file.resolve().is_relative_to(self._root) for file in run.files)
        except (OSError, RuntimeError):  # links that form a circle
            return False

    def _listed(self, name: str, run: Run) -> dict[str, Any]:
        """Return a run's row, or a row with the reason if the run cannot be read."""
        try:
            run.look()
            return _row(name, run)
        except Exception as error:  # any content is possible, and the other runs must stay in the list
            return {"run": name, "status": f"unreadable ({visible(str(error)) or type(error).__name__})"[:80]}

    def leaderboard(self) -> Leaderboard:
        """Return the leaderboard of the newest run of every entrant in the folder now."""
        self.rows()
        with self._lock:
            return Leaderboard.of(list(self._runs.values()))

    def refreshed(self, names: Sequence[str]) -> list[Run]:
        """Return these runs as they are now. Unknown names are left out."""
        with self._lock:
            runs = [self._runs[name] for name in names if name in self._runs and self._inside(self._runs[name])]
            return [run for run in runs if _readable(run)]


def _readable(run: Run) -> bool:
    """Read what is new in a run. Returns False if it cannot be drawn; its row then gives the reason."""
    try:
        run.refresh()
        Contents.of([run])
    except Exception:
        return False
    return True


def _row(name: str, run: Run) -> dict[str, Any]:
    figures = {"tau": "tokens_per_step"}  # tokens/s of a training run are the speed of training
    if not run.trains:
        figures |= {"acceptance": "acceptance_rate", "speed": "tokens_per_second", "speedup": "speedup"}
    return {
        "started": str(run.provenance.get("started", ""))[:19].replace("T", " "),
        "run": name,
        **run.names,
        "status": run.status,
        **{column: _rounded(getattr(run.head, key)) for column, key in figures.items()},
    }


def _rounded(figure: Any) -> float | None:
    return round(figure, 3) if isinstance(figure, int | float) else None


def dashboard(root: Path) -> Dash:
    """Return the application. Serve its `server` only on the loopback interface.

    Raises:
        InputError: the folder does not exist.
    """
    library = Library(root)
    app = Dash(
        __name__, assets_folder=str(ASSETS), assets_ignore=r".*\.(js|html)$", title="specdec runs", update_title=""
    )
    app.layout = lambda: _layout(library.rows())
    server: Any = app.server

    @server.before_request
    def only_this_machine() -> None:
        """Refuse requests for another host name, so that a foreign site that resolves to this machine gets nothing."""
        if request.host.rpartition(":")[0] not in (HOST, "localhost"):
            abort(403)

    @server.after_request
    def headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def chosen() -> list[Run]:
        runs = library.refreshed(request.args.getlist("run"))
        return runs or abort(404)

    @server.get("/reader")
    def reader() -> Response:
        return Response(reader_page(chosen()[0]), mimetype="text/html")

    @server.get("/leaderboard")
    def leaderboard() -> Response:
        return Response(leaderboard_page(library.leaderboard()), mimetype="text/html")

    @server.get("/report")
    def report() -> Response:
        name = {"Content-Disposition": "attachment; filename=report.html"}
        return Response(page(chosen()), mimetype="text/html", headers=name)

    @app.callback(Output("runs", "data"), Input("clock", "n_intervals"), State("runs", "data"))
    def list_runs(_: int, before: list[dict[str, Any]]) -> Any:
        rows = library.rows()
        return no_update if rows == before else rows

    @app.callback(
        Output("shown", "children"),
        Output("stamp", "data"),
        Input("clock", "n_intervals"),
        Input("runs", "selected_row_ids"),
        State("stamp", "data"),
    )
    def show(_: int, names: list[str] | None, before: Any) -> Any:
        runs = library.refreshed(names or [])
        stamp = [names or [], [run.stamp for run in runs]]
        if stamp == before:
            return no_update, no_update
        return _contents(runs, names or []), stamp

    return app


def _layout(rows: Any) -> html.Main:
    plain = {"backgroundColor": "var(--card)", "color": "var(--ink)", "border": "1px solid var(--line)"}
    numbers = ("tau", "acceptance", "speed", "speedup")
    runs = DataTable(
        id="runs",
        data=rows,
        columns=[{"id": k, "name": n, "type": "numeric" if k in numbers else "text"} for k, n in COLUMNS.items()],
        row_selectable="multi",
        filter_action="native",
        filter_options={"case": "insensitive", "placeholder_text": "filter"},
        sort_action="native",
        sort_by=[{"column_id": "started", "direction": "desc"}],
        page_size=12,
        style_table={"overflowX": "auto"},
        style_cell={
            **plain,
            "fontFamily": "system-ui, sans-serif",
            "fontSize": "13px",
            "padding": "6px 10px",
            "textAlign": "right",
        },
        style_cell_conditional=[{"if": {"column_id": k}, "textAlign": "left"} for k in COLUMNS if k not in numbers],
        style_header={"fontWeight": "600", "color": "var(--soft)", "whiteSpace": "normal"},
        style_data_conditional=[{"if": {"state": "active"}, **plain}, {"if": {"state": "selected"}, **plain}],
    )
    return html.Main(
        [
            html.H1("Runs"),
            html.P("Choose one to see it, several to compare them. A run under way is followed.", className="says"),
            html.P(html.A("leaderboard", href="/leaderboard"), className="made"),
            html.Section(runs, className="card wide"),
            html.Div(id="shown"),
            dcc.Interval(id="clock", interval=PERIOD_MS),
            dcc.Store(id="stamp"),
        ]
    )


def _contents(runs: Sequence[Run], names: Sequence[str]) -> list[Any]:
    if not runs:
        return []
    contents, query = Contents.of(runs), urlencode([("run", name) for name in names])
    made = [
        html.P([html.Code(command), " · commit ", html.Code(commit)], className="made")
        for command, commit in contents.made
    ]
    tiles = [
        html.Div([html.Span(t.label), html.B(t.value), html.Span(t.note)], className="tile") for t in contents.tiles
    ]
    cards = [_card(picture) for picture in contents.pictures]
    if contents.table:
        link = html.P(html.A("runs.csv", href=csv_link(contents.table), download="runs.csv"), className="csv")
        cards.insert(
            0,
            html.Section(
                [html.H2("The runs"), html.Div(_table(contents.table), className="scroll"), link], className="card wide"
            ),
        )
    if len(runs) == 1 and runs[0].generations:
        frame = html.Iframe(src=f"/reader?{query}", style={"border": 0, "width": "100%", "height": "680px"})
        cards.append(html.Section(frame, className="wide"))
    return [
        html.H1(contents.title),
        *[html.P(line, className="made") for line in contents.head],
        *made,
        html.P(html.A("this as one file", href=f"/report?{query}"), className="made"),
        *[html.P(note, className="warn") for note in contents.notes],
        html.Section(tiles, className="tiles"),
        html.Div(cards, className="cards"),
    ]


def _card(picture: Picture) -> html.Section:
    height = {"height": f"{picture.figure.layout.height}px"}
    file = f"{picture.name}.csv"
    return html.Section(
        [
            html.H2(picture.title),
            html.P(picture.says, className="says"),
            dcc.Graph(
                figure=picture.figure, config=CONFIG, id=picture.name, className="chart", style=height, responsive=True
            ),
            html.P(html.A(file, href=csv_link(picture.table), download=file), className="csv"),
        ],
        className="card wide" if picture.wide else "card",
    )


def _table(table: Table) -> html.Table:
    head = html.Tr([html.Th(column) for column in table.columns])
    return html.Table(
        [head, *[html.Tr([html.Td(shown(cell)) for cell in row]) for row in table.rows]], className="runs"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the runs are; nothing outside it is read")
    parser.add_argument("--port", type=int, default=8050)
    options = parser.parse_args(arguments)
    with one_line_errors():
        app = dashboard(options.folder)
        require_free(options.port)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or it logs a line per second and browser
        stdout.print(f"dashboard: http://{HOST}:{options.port} (Ctrl-C ends it)", highlight=False)
        app.run(host=HOST, port=options.port)


def require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError("--port", expected="a free port", got=f"{port} ({error})", fix="choose another") from error


if __name__ == "__main__":
    main()
