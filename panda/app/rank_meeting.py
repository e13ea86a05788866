"""How the ranks of one training find each other: by the store of torch, which says where rank 0 listens."""

from __future__ import annotations

import json
import secrets
import socket
import time
from datetime import timedelta
from typing import Any

from panda.app.rank_group import Link, RankGroup
from panda.app.ranks import Launch
from panda.errors import PandaError

JOIN_SECONDS = 600.0
"""All ranks join within this time. Loading a program from a busy network disk takes minutes."""
_HELLO_SECONDS = 20.0


def open_store(launch: Launch, seconds: float) -> Any:
    """Open or join the store of torch by which the ranks find each other.

    Raises:
        PandaError: If rank 0 cannot open it, or another rank cannot reach it in time.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415  (the launch is checked before torch is loaded)

    where = f"{launch.address}:{launch.port}"
    try:
        return TCPStore(
            launch.address,
            launch.port,
            launch.size,
            launch.hosts_store,
            timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,  # Lightning opens the same one again
        )
    except RuntimeError as error:
        if launch.hosts_store:
            raise PandaError(
                f"{where}: rank 0 cannot listen there ({str(error).splitlines()[0]}): export MASTER_PORT=… with a port "
                "that is free on its machine"
            ) from error
        raise PandaError(
            f"rank {launch.rank} of {launch.size} on {socket.gethostname()} cannot reach rank 0 at {where} within "
            f"{seconds:.0f} s: export MASTER_ADDR=… with a name of that machine which all others know, or open the port"
        ) from error


def gather(launch: Launch, seconds: float = JOIN_SECONDS) -> RankGroup:
    """Connect rank 0 to all others.

    Raises:
        PandaError: If a rank does not join in time.
    """
    store, token = open_store(launch, seconds), secrets.token_hex(16)
    end, links = time.monotonic() + seconds, dict[int, Link]()
    dual = socket.has_dualstack_ipv6()
    with socket.create_server(
        ("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=launch.size
    ) as server:
        store.set(_key(launch), json.dumps({"port": server.getsockname()[1], "token": token}))
        while len(links) < launch.size - 1:
            server.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                absent = ", ".join(str(rank) for rank in range(1, launch.size) if rank not in links)
                for link in links.values():
                    link.send("end", status=1)
                raise PandaError(
                    f"of {launch.size} ranks that {launch.starter} started, {absent} did not join within "
                    f"{seconds:.0f} s: look at their output, or whether their machines reach {launch.address}"
                ) from None
            if (new := _greet(connection, token)) is not None:
                links[new.rank] = new
    return RankGroup(launch, [links[rank] for rank in sorted(links)], store)


def _greet(connection: socket.socket, token: str) -> Link | None:
    """Return the link to a rank that knows the token; anything else that connects is turned away."""
    connection.settimeout(_HELLO_SECONDS)
    link = Link(connection)
    hello = link.read()
    if hello is None or hello.get("token") != token:
        link.close()
        return None
    connection.settimeout(None)
    link.rank, link.host, link.hello = hello["rank"], hello["host"], hello
    link.send("welcome")
    return link


def join(launch: Launch, seconds: float = JOIN_SECONDS, **hello: Any) -> RankGroup:
    """Connect a rank to rank 0.

    Args:
        launch: How this rank was started.
        seconds: How long rank 0 may take to appear.
        hello: What rank 0 is to know of this rank.

    Raises:
        PandaError: If rank 0 cannot be reached in time.
    """
    end = time.monotonic() + seconds
    store = open_store(launch, seconds)
    while True:
        try:
            place = json.loads(store.get(_key(launch)))
            connection = socket.create_connection((launch.address, place["port"]), timeout=_HELLO_SECONDS)
            link = Link(connection, host=launch.address)
            link.send("hello", token=place["token"], rank=launch.rank, host=socket.gethostname(), **hello)
            connection.settimeout(None)
            if link.read() is not None:
                return RankGroup(launch, [link])
            link.close()
        except (OSError, RuntimeError) as error:
            if time.monotonic() > end:
                raise PandaError(
                    f"rank {launch.rank} of {launch.size} on {socket.gethostname()} cannot reach rank 0 at "
                    f"{launch.address} ({error}): see its output"
                ) from error
        time.sleep(0.5)


def _key(launch: Launch) -> str:
    return f"panda/{launch.job}"
