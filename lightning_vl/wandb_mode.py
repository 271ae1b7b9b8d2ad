"""Whether W&B can be reached: what decides between online and offline, asked without torch, a prompt or a hang."""

import netrc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlparse

from lightning_vl.errors import UserError

SECONDS_TO_CONNECT = 3


class WandbMode(NamedTuple):
    """What W&B will do, and why.

    Attributes:
        name: `online`, `offline` or `disabled`, as WANDB_MODE.
        reason: in a few words; never a key.
    """

    name: str
    reason: str


def find_wandb_mode() -> WandbMode:
    """Offline where W&B could only prompt or hang: without a key or login, or without a way to its host.

    Raises:
        UserError: WANDB_MODE asks for online, and there is no key.
    """
    mode = os.environ.get("WANDB_MODE") or None
    if mode not in (None, "online"):
        return WandbMode(str(mode), "WANDB_MODE says so")
    if not has_key():
        if mode:
            raise UserError("WANDB_MODE is online and there is no key", "run `wandb login`, or unset WANDB_MODE")
        return WandbMode("offline", f"there is no key for {host()}")
    if not is_reachable():
        return WandbMode("offline", f"{host()} cannot be reached")
    return WandbMode("online", f"there is a key for {host()}")


def choose_wandb_mode() -> str:
    """Sets WANDB_MODE to what `find_wandb_mode` says, and says so where a key is of no use.

    Returns:
        The mode.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = find_wandb_mode()
    if mode.name == "offline" and has_key() and os.environ.get("WANDB_MODE") in (None, "", "online"):
        from lightning_vl.terminal import say  # not at the top: it imports torch

        say(f"{mode.reason}: W&B logs offline; `python -m lightning_vl wandb sync` sends it later")
    os.environ["WANDB_MODE"] = mode.name
    return mode.name


@contextmanager
def asking_wandb(what: str, how: str) -> Iterator[None]:
    """Turns what W&B's client raises while it asks the server into a mistake in two lines.

    Args:
        what: is refused.
        how: to mend it.
    """
    import wandb  # not at the top: it takes a second
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # is no wandb.Error

    try:
        yield
    except (wandb.Error, WandbApiFailedError, ValueError, OSError) as error:
        raise UserError(f"W&B refuses {what}: {' '.join(str(error).split())[:200]}", how) from error


def host() -> str:
    """The host of W&B: the public one, or that of WANDB_BASE_URL."""
    return urlparse(_base_url()).hostname or ""


def has_key() -> bool:
    """Whether the environment or a netrc file has a key for the host; the key itself is not looked at."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host()) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def is_reachable() -> bool:
    """Whether the host accepts a connection within seconds."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True  # the proxy knows
    url = urlparse(_base_url())
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), timeout=SECONDS_TO_CONNECT).close()
    except OSError:
        return False
    return True


def _base_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
