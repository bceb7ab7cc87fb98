"""`python -m sglang.launch_server`: one SGLang engine, or its part on one host."""

import socket
from typing import Any

from aiohttp import web
from standin_answers import Asked
from standin_faults import Strike, start
from standin_flags import bind
from standin_nodes import Head, Life, follow, run
from standin_server import Engine, Server, metrics_page, serve_http

from sglang.standin_arguments import Arguments, parse
from sglang.standin_body import check_alone
from sglang.standin_decode import Decode
from sglang.standin_prefill import Prefill

# What the processes of data parallel attention bind after the place where they meet.
_DP_ATTENTION_PORTS = (1, 2, 3, 4, 5, 6, 13)


class Mixed(Engine):
    """Serves alone."""

    python_errors = True

    def identity(self, body: dict[str, Any]) -> str:
        """The request's own name for itself, if any."""
        return str(body.get("rid") or "")

    def check(self, asked: Asked) -> None:
        """Nobody else is part of it."""
        check_alone(asked.body)

    async def meet(self, asked: Asked, strike: Strike) -> list[str]:
        """Compute the prompts."""
        return [asked.token(index, 0) for index in range(len(asked.sequences))]

    def held(self) -> int:
        """Nothing."""
        return 0


async def serve(arguments: Arguments, life: Life) -> None:
    """Be the process that the command line asks for."""
    if arguments.node_rank > 0 and arguments.head is not None:
        await follow(life, arguments.node_rank, *arguments.head)
        return
    api = bind(arguments.host, arguments.port, "--port")
    rendezvous = bind(*arguments.head, "--dist-init-addr") if arguments.head else None
    _held = _bind_dp_attention(arguments)
    engine = _engine(arguments)
    bootstrap = None
    if arguments.has_bootstrap:
        bootstrap = bind(arguments.host, arguments.bootstrap_port, "--disaggregation-bootstrap-port")
    if isinstance(engine, Prefill):
        await engine.open(bind(arguments.host, 0, "KV"))
        if bootstrap is not None:
            await serve_http(engine.bootstrap_app(), bootstrap)
    server = Server(engine, arguments.role, arguments.port, arguments.served_model_name)
    server.max_model_len = arguments.context_length
    server.api_key = arguments.api_key
    server.app.add_routes(_routes(arguments, server))
    await serve_http(server.app, api)
    await start()
    if rendezvous is not None:
        await Head(life, arguments.nodes).gather(rendezvous)
    server.healthy = True
    await life.over()


def _bind_dp_attention(arguments: Arguments) -> list[socket.socket]:
    if not arguments.dp_attention or arguments.head is None:
        return []
    host, first = arguments.head
    return [bind(host, first + more, "DP attention") for more in _DP_ATTENTION_PORTS]


def _engine(arguments: Arguments) -> Engine:
    if arguments.role == "prefill":
        return Prefill(arguments)
    return Decode(arguments) if arguments.role == "decode" else Mixed()


def _routes(arguments: Arguments, server: Server) -> list[web.RouteDef]:
    async def ready(_: web.Request) -> web.Response:
        return web.Response(status=200 if server.healthy else 503)

    async def model_info(_: web.Request) -> web.Response:
        return web.json_response({"model_path": arguments.model, "is_generation": True})

    async def abort(request: web.Request) -> web.Response:
        asked = await request.json()
        server.abort(None if asked.get("abort_all") else [asked["rid"]])
        return web.Response()

    async def metrics(_: web.Request) -> web.Response:
        return metrics_page("sglang", server.model, _figures(server))

    async def heartbeats(_: web.Request) -> web.Response:
        return web.json_response(server.engine.heartbeats if isinstance(server.engine, Prefill) else 0)

    routes = [
        web.get("/standin/heartbeats", heartbeats),
        web.get("/ready", ready),
        web.get("/health_generate", ready),  # makes a token with bootstrap_host 2.2.2.2, without another engine
        web.get("/get_model_info", model_info),
        web.post("/abort_request", abort),
    ]
    return [*routes, web.get("/metrics", metrics)] if arguments.metrics else routes


def _figures(server: Server) -> dict[str, float]:
    held = server.engine.held()
    figures: dict[str, float] = {
        "num_running_reqs": server.running - min(held, server.running),
        "num_queue_reqs": held,
        "token_usage": min(1.0, server.running / 64),
        "num_used_tokens": server.running * 16,
        "gen_throughput": 0,
        "cache_hit_rate": 0,
        "prompt_tokens_total": server.prompt_tokens,
        "generation_tokens_total": server.generated_tokens,
    }
    if server.role == "prefill":
        figures |= {"num_prefill_bootstrap_queue_reqs": held, "num_prefill_inflight_queue_reqs": 0}
    if server.role == "decode":
        figures |= {"num_decode_prealloc_queue_reqs": 0, "num_decode_transfer_queue_reqs": held}
    return figures


if __name__ == "__main__":
    arguments = parse(None)
    run(lambda life: serve(arguments, life))
