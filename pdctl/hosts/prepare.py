"""Making the builtin engine's environment on a host that has nothing of ours."""

from collections.abc import Callable
from pathlib import Path

from pdctl.agent.environment import ENVIRONMENTS
from pdctl.hosts.command import Feed
from pdctl.hosts.host import Host
from pdctl.hosts.wheel import Wheel, own_wheel

SEND_TIMEOUT_S = 600.0  # for one file
INSTALL_TIMEOUT_S = 3600.0  # torch is large, and the way to the index may be slow
_WHEELHOUSE = "wheelhouse"

Report = Callable[[str], None]


async def prepare_host(
    host: Host, *, python: str | None = None, wheelhouse: Path | None = None, report: Report = lambda line: None
) -> str:
    """Make the environment, unless it is there; returns its interpreter. Another call goes on where one was given up.

    `python`: the interpreter there to make it with. `wheelhouse`: a folder here with the wheels of everything that is
    needed, for hosts without a way to an index.
    """
    wheel = own_wheel()
    folder = ENVIRONMENTS / wheel.environment
    found = await host.probe(folder, [], environment=wheel.environment)
    if found["prepared_python"]:
        return str(found["prepared_python"])
    for name, content in _files(wheel, wheelhouse).items():
        report(f"sending {name}")
        await host.run("receive", folder, name, timeout_s=SEND_TIMEOUT_S, feed=Feed(content))
    arguments = ["--wheel", wheel.name, *(["--python", python] if python else [])]
    arguments += ["--wheelhouse", str(folder / _WHEELHOUSE)] if wheelhouse else []
    arguments += ["--more", wheel.demo_model] if wheel.demo_model else []
    await host.run("install", folder, *arguments, timeout_s=INSTALL_TIMEOUT_S, feed=Feed(on_line=report))
    return str((await host.probe(folder, [], environment=wheel.environment))["prepared_python"])


def _files(wheel: Wheel, wheelhouse: Path | None) -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {wheel.name: wheel.content, "constraints.txt": wheel.constraints.encode()}
    found = sorted(wheelhouse.glob("*.whl")) if wheelhouse else []
    return files | {f"{_WHEELHOUSE}/{path.name}": path for path in found}
