"""Engines and routers as data: how to start each role, which ports it has, how to ask for its load."""

from pdctl.profiles.loading import (
    engine_names,
    engine_problem,
    load_profile,
    load_router_profile,
    router_names,
    router_problem,
)
from pdctl.profiles.models import EngineRole, Port, Profile, Readiness, RoleProfile, RouterProfile, Trouble, WarmUp
from pdctl.profiles.templates import fill

__all__ = [
    "EngineRole",
    "Port",
    "Profile",
    "Readiness",
    "RoleProfile",
    "RouterProfile",
    "Trouble",
    "WarmUp",
    "engine_names",
    "engine_problem",
    "fill",
    "load_profile",
    "load_router_profile",
    "router_names",
    "router_problem",
]
