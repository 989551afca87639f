"""The UUID of an event, from where it was recorded.

A version 8 UUID (RFC 9562): 74 random bits name the buffer or the segment, the last 48 are the
event's position in it. Nothing has to be drawn or stored per event, and after a crash the same
event gets the same identifier again.
"""

from __future__ import annotations

from meter_agent._runtime import Runtime

__all__ = ["PREFIX_BYTES", "draw_prefix", "identifier_prefix", "identifiers"]

PREFIX_BYTES = 10
_RANDOM_BITS = 74
_VARIANT = 0b10
_LAST_DIGITS = tuple(f"{n:02x}" for n in range(256))


def draw_prefix(runtime: Runtime) -> bytes:
    """Return the first 10 bytes of the identifiers of a new buffer or segment."""
    bits = runtime.random_bits(_RANDOM_BITS)
    head, low = bits >> 14, bits & 0x3FFF
    high, middle = head >> 12, head & 0xFFF
    number = high << 32 | 8 << 28 | middle << 16 | _VARIANT << 14 | low
    return number.to_bytes(PREFIX_BYTES, "big")


def identifier_prefix(prefix: bytes) -> str:
    """Return *prefix* as text; 12 hexadecimal digits of a position make an identifier of it."""
    digits = prefix.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-"


def identifiers(prefix: str, position: int, count: int) -> list[str]:
    """Return the identifiers of *count* positions from *position* on."""
    names: list[str] = []
    while len(names) < count:
        # Neighbours share all but the last two digits: a third of the price of formatting each.
        high, low = divmod(position + len(names), 256)
        head = f"{prefix}{high:010x}"
        names += [head + digits for digits in _LAST_DIGITS[low : low + count - len(names)]]
    return names
