"""`python -m fastdeploy.entrypoints.openai.api_server`: one FastDeploy engine, or its part on one host."""

import asyncio
import sys
from typing import Any

from aiohttp import web
from standin_answers import Asked
from standin_faults import Strike, start
from standin_nodes import Head, Life, follow, run
from standin_server import Engine, Server, metrics_page, serve_http

from fastdeploy.standin_arguments import Arguments, parse
from fastdeploy.standin_body import check_alone, check_identity
from fastdeploy.standin_decode import Decode
from fastdeploy.standin_instance import Instance, open_instance, register
from fastdeploy.standin_prefill import Prefill


class Mixed(Engine):
    """Serves alone."""

    early_head = True

    def identity(self, body: dict[str, Any]) -> str:
        """The router's id, if there is one."""
        return check_identity(body) if "request_id" in body else ""

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
    if arguments.node > 0:
        await follow(life, arguments.node, arguments.ips[0], arguments.worker_queue_port)
        return
    instance = open_instance(arguments)
    engine = await _engine(instance)
    server = Server(engine, arguments.role, arguments.port, arguments.served_model_name)
    server.max_model_len = arguments.max_model_len
    server.api_key = arguments.api_key
    server.app.add_routes([web.post("/v1/abort_requests", _abort(server))])
    await _serve_metrics(instance, server)
    await serve_http(server.app, instance.api)
    await start()
    (arguments.log_dir / "api_server.log").write_text(f"started: {sys.argv}\n")
    if len(arguments.ips) > 1:
        await Head(life, len(arguments.ips)).gather(instance.worker_queue)
    server.healthy = True
    registering = asyncio.ensure_future(register(instance, server))
    await life.over()
    registering.cancel()


async def _engine(instance: Instance) -> Engine:
    if instance.arguments.role == "prefill":
        return Prefill(instance)
    if instance.arguments.role == "mixed":
        return Mixed()
    decode = Decode(instance)
    await decode.open()
    return decode


def _abort(server: Server) -> Any:
    async def abort(request: web.Request) -> web.Response:
        asked = await request.json()
        aborted = server.abort(None if asked.get("abort_all") else list(asked["req_ids"]))
        return web.json_response({"request_id": "control", "status": "success", "result": {"aborted": aborted}})

    return abort


async def _serve_metrics(instance: Instance, server: Server) -> None:
    async def metrics(_: web.Request) -> web.Response:
        return metrics_page("fastdeploy", server.model, _figures(instance, server))

    route = web.get("/metrics", metrics)
    if instance.metrics is None:
        server.app.add_routes([route])
        return
    app = web.Application()
    app.add_routes([route])
    await serve_http(app, instance.metrics)


def _figures(instance: Instance, server: Server) -> dict[str, float]:
    blocks = instance.arguments.blocks
    free = server.engine.free_blocks if isinstance(server.engine, Decode) else blocks
    held = min(server.engine.held(), server.running)
    return {
        "num_requests_running": server.running - held,
        "num_requests_waiting": held,
        "gpu_cache_usage_perc": (blocks - free) / blocks,
        "available_gpu_block_num": free,
        "free_gpu_block_num": free,
        "max_gpu_block_num": blocks,
        "prompt_tokens_total": server.prompt_tokens,
        "generation_tokens_total": server.generated_tokens,
        "send_cache_failed_num": 0,
    }


if __name__ == "__main__":
    arguments = parse(None)
    run(lambda life: serve(arguments, life))
