"""Who may call a route: FastAPI's dependencies, each of which refuses those who may not.

All are coroutines, so that they run where the stores may be read: on the loop's own thread.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mayfly.orchestrator.service import Service
from mayfly.orchestrator.trust import Principal


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Serve = Annotated[Service, Depends(_service)]


async def _principal(request: Request, service: Serve) -> Principal:
    kind, _, credential = request.headers.get("authorization", "").partition(" ")
    return await service.verify(credential.strip() if kind.lower() == "bearer" else "")


Who = Annotated[Principal, Depends(_principal)]


async def _admin(who: Who) -> Principal:
    who.require_admin()
    return who


async def _asker(who: Who) -> Principal:
    who.require_leasing()
    return who


async def _holder(lease_id: str, service: Serve, who: Who) -> Principal:
    service.require(lease_id, who)
    return who


async def _reader(lease_id: str, service: Serve, who: Who) -> Principal:
    service.require(lease_id, who, reading=True)
    return who


Asker = Annotated[Principal, Depends(_asker)]
Admin = Annotated[Principal, Depends(_admin)]
Holder = Annotated[Principal, Depends(_holder)]
Reader = Annotated[Principal, Depends(_reader)]
