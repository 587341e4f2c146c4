"""Slots of a host's GPUs as a global concurrency limit of Prefect, so that two flows never share one.

A slot is held by a lease that its holder renews. A process that died renews nothing, so its slot is free
again after `LEASE_SECONDS`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

LEASE_SECONDS = 60.0
SLOTS = "PASER_GPU_SLOTS"
_ONE_THREAD = threading.Lock()


def limit_name() -> str:
    return f"gpu-{socket.gethostname()}"


def ensure_limit() -> str:
    """Makes this host's limit where it is missing: `PASER_GPU_SLOTS` slots, one by default."""
    name = limit_name()
    with _ONE_THREAD, get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            slots = int(os.environ.get(SLOTS, "1"))
            with suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
    return name


@contextmanager
def slot(needed: bool) -> Iterator[None]:
    """Holds a slot of this host's GPUs; waits for it. Does nothing where none is needed.

    The stage goes on when a lease could not be renewed, as during a restart of the server.
    """
    if not needed:
        yield
        return
    with concurrency(
        ensure_limit(),
        occupy=1,
        lease_duration=LEASE_SECONDS,
        strict=True,
        raise_on_lease_renewal_failure=False,
    ):
        yield
