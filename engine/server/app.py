"""The HTTP application: routes, errors, and the calls that need the token."""

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler

import pdctl
from engine.errors import RequestError
from engine.server.chat import chat
from engine.server.completions import completions
from engine.server.metrics import CONTENT_TYPE
from engine.server.protocol import AbortRequest, parse
from engine.server.responses import as_request_error, error_response, json_response
from engine.server.state import STATE, ServerState

MAX_BODY_BYTES = 8 << 20


def make_app(state: ServerState) -> web.Application:
    """Make the API's application."""
    app = web.Application(middlewares=[_errors], client_max_size=MAX_BODY_BYTES)
    app[STATE] = state
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat),
            web.post("/v1/completions", completions),
            web.post("/v1/abort_requests", _abort_requests),
            web.get("/v1/models", _models),
            web.get("/v1/models/{model:.+}", _model),
            web.get("/health", _health),
            web.get("/ping", _health),
            web.get("/version", _version),
            web.get("/metrics", _metrics),
            web.get("/kv_events", _kv_events, allow_head=False),
        ]
    )
    return app


def make_metrics_app(state: ServerState) -> web.Application:
    """Make the application of the metrics port."""
    app = web.Application()
    app[STATE] = state
    app.add_routes([web.get("/metrics", _metrics)])
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return error_response(RequestError(f"{request.method} {request.path}: {error.text}", status=error.status))
    except ConnectionError:  # the client has left
        raise
    except Exception as error:  # every error becomes OpenAI's error object
        return error_response(as_request_error(error))


async def _health(request: web.Request) -> web.Response:
    state = request.app[STATE]
    if state.problem is not None:
        raise RequestError(state.problem, status=503, code="not_ready")
    return json_response({"status": state.phase})


async def _version(_: web.Request) -> web.Response:
    return json_response({"version": pdctl.__version__})


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[STATE].metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def _models(request: web.Request) -> web.Response:
    return json_response({"object": "list", "data": [_card(request.app[STATE])]})


async def _model(request: web.Request) -> web.Response:
    state, name = request.app[STATE], request.match_info["model"]
    state.check_model(name)
    return json_response(_card(state))


def _card(state: ServerState) -> dict[str, object]:
    name = state.args.served_model_name
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "pdctl",
        "root": name,
        "max_model_len": state.max_model_len,
    }


async def _abort_requests(request: web.Request) -> web.Response:
    state = request.app[STATE]
    _check_token(request, state.token)
    body = parse(await request.read(), AbortRequest)
    error = RequestError("the request was aborted", status=499, code="request_aborted")
    aborted = state.streams.fail(None if body.abort_all else body.req_ids, error)
    return json_response({"aborted": aborted})


async def _kv_events(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    _check_token(request, state.token)
    return await state.kv_events.stream(request, state.backend.core.held_text)


def _check_token(request: web.Request, token: str | None) -> None:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if token is not None and not hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode()):
        raise RequestError("this call needs the deployment's token", status=401, code="invalid_token")
