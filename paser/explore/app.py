"""The explorer's pages: written on the server, without scripts, and served to this machine only.

A page may hold other people's text, so all of it is escaped and the policy forbids every script and every
other host; names that lead here from elsewhere (DNS rebinding) are refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from paser.errors import ModelError, PaserError
from paser.explore.answers import Answerer
from paser.explore.project import Project
from paser.explore.rows import FILTERS, ORDERS, Question
from paser.records import row_to_sample
from paser.report.content import REASONS, clip, number

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PORT = 8642
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, under which a browser sends no Origin with this site's own forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NAMES = ["127.0.0.1", "localhost", "[::1]"]
# JSD of a token from which each shade begins, nats; the largest possible is ln 2 = 0.693.
SHADES = (0.02, 0.05, 0.1, 0.2, 0.4)


def build(project: Project, answerer: Answerer) -> Starlette:
    """The application: `/` lists rows, `/row/ID` shows one, a POST to it asks both models."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
    from starlette.routing import Route

    environment = Environment(
        loader=ChoiceLoader([PackageLoader("paser.explore"), PackageLoader("paser.report")]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    environment.globals.update(
        number=number, clip=clip, name_of=project.name_of, reasons=REASONS, shade=shade, visible=visible
    )
    style = environment.get_template("page.css").render() + environment.get_template("explore.css").render()

    def page(template: str, status: int = 200, **values: Any) -> Response:
        text = environment.get_template(template).render(**values)
        return HTMLResponse(text, status_code=status, headers=HEADERS)

    def wrong(message: str, status: int) -> Response:
        return page("wrong.html.j2", status, message=message)

    def found_rows(request: Request) -> Response:
        try:
            question = Question.of(request.query_params)
        except PaserError as error:
            return wrong(str(error), 400)
        return page(
            "rows.html.j2",
            question=question,
            page=project.rows.page(question),
            total=len(project.rows),
            clusters=project.clusters,
            orders={key: words for key, (_, _, words) in ORDERS.items()},
            choices={name: [str(value) for value in project.rows.choices(name)] for name in FILTERS},
        )

    async def one_row(request: Request) -> Response:
        row = await run_in_threadpool(project.rows.row, request.path_params["row_id"])
        if row is None:
            return wrong("No row of the pool has this id.", 404)
        if request.method == "POST":
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != request.headers["host"]:
                return wrong("This was asked from a page of another site.", 403)
            try:
                await run_in_threadpool(answerer.ask, row_to_sample(row))
            except ModelError as error:
                return wrong(str(error), 500)
            return RedirectResponse(f"/row/{row['row_id']}#answers", status_code=303, headers=HEADERS)
        try:
            reasons = await run_in_threadpool(project.why, row["row_id"])
        except PaserError as error:
            return wrong(str(error), 500)
        return page("row.html.j2", row=row, why=reasons, answers=answerer.known(row["row_id"]))

    def css(request: Request) -> Response:
        return PlainTextResponse(style, media_type="text/css", headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", found_rows),
            Route("/row/{row_id}", one_row, methods=["GET", "POST"]),
            Route("/style.css", css),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)],
    )


def shade(jsd: float) -> int:
    """0 (hardly any divergence) to 5 (most), for the colour behind a token."""
    return sum(jsd >= start for start in SHADES)


def visible(text: str) -> str:
    """A token's text with its line ends, tabs and control characters made visible."""
    signs = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(signs.get(c, c if c.isprintable() else "�") for c in text) or "∅"


def check_host(host: str) -> str:
    """`host`, when it is an address or name of this machine's loopback; PaserError otherwise."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host
    if host == "localhost":
        return "127.0.0.1"
    raise PaserError(
        f"--host {host}: the explorer listens on loopback only, because it has no users and no passwords",
        remedy=f"leave --host out; from another machine use `ssh -L {PORT}:127.0.0.1:{PORT} THIS-MACHINE`",
    )


def serve(folder: Path, host: str, port: int, longest: int, show: bool) -> None:
    """Serves the explorer of a project until it is interrupted; `port` 0 takes a free one."""
    try:
        import uvicorn
    except ImportError as error:
        raise PaserError(f"{error.name} is not installed", remedy="pip install 'paser[explore]'") from error
    from paser.progress import say

    host = check_host(host)
    project = Project.read(folder)
    app = build(project, Answerer(folder, project.settings, longest))
    with _bound(host, port) as bound:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{bound.getsockname()[1]}/"
        say(f"{len(project.rows):,} rows at {address} (Ctrl-C ends it)")
        if show:
            webbrowser.open(address)
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(settings).run(sockets=[bound])


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # before the browser opens: it waits, and is not refused
    except OSError as error:
        bound.close()
        raise PaserError(
            f"port {port} on {host} cannot be used: {error.strerror}", remedy="give another with --port"
        ) from error
    with bound:
        yield bound
