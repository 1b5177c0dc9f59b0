from dataclasses import dataclass


@dataclass(frozen=True)
class Store:
    connections: int | None = None
    ca_bundle: str | None = None
