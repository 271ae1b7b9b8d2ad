"""Loaded by every Python process that the tests start: blocks connections that leave the machine."""

import socket

_connect = socket.socket.connect


def _only_local(self, address):  # type: ignore[no-untyped-def]
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the test suite trains without a network, and something asked for {address}")
    return _connect(self, address)


socket.socket.connect = _only_local  # type: ignore[method-assign]
