"""The addresses of a service: the one in use, and those to turn to when it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sarm2_client.connection import Address
from sarm2_client.errors import ConnectionLost, Draining, WaitTimeout

_T = TypeVar("_T")


class Replicas:
    """One or more addresses, in a ring. All episodes and requests of a client share it."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = list(addresses)
        self._position = 0

    @property
    def current(self) -> Address:
        """Where the next connection and the next request go."""
        return self._addresses[self._position]

    def leave(self, address: Address) -> None:
        """This one failed: go on at the next one, unless another episode has seen to that."""
        if address is self.current:
            self._position = (self._position + 1) % len(self._addresses)

    async def ask(self, question: Callable[[Address], Awaitable[_T]]) -> _T:
        """What the current address answers or, where that fails, another one; each is asked once.

        Raises ConnectionLost, Draining or WaitTimeout where the last one does, other errors at once.
        """
        left = len(self._addresses)
        while True:
            address = self.current
            try:
                return await question(address)
            except (ConnectionLost, Draining, WaitTimeout):
                self.leave(address)
                left -= 1
                if not left:
                    raise
