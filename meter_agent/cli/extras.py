"""Which optional packages are there; imports none of them."""

from importlib.util import find_spec

__all__ = ["missing_extra"]

_PACKAGES = {"cli": ("click", "rich"), "sandbox": ("starlette", "uvicorn"), "parquet": ("pyarrow",)}


def missing_extra(extra: str) -> str | None:
    """Return a line that tells what to install, or None when *extra* is complete."""
    missing = [name for name in _PACKAGES[extra] if find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{' and '.join(missing)} not installed; the extra {extra!r} brings it: "
        f"pip install 'meter-agent[{extra}]'"
    )
