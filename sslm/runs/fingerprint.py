"""What differs between two fingerprints of a run's data, which decide every batch."""

from typing import Any


def changes(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = []
        for key in dict.fromkeys([*was, *now]):
            where = f"{name}.{key}" if name else str(key)
            if key not in now:
                found.append(f"{where} is gone")
            elif key not in was:
                found.append(f"{where} is new")
            else:
                found += changes(was[key], now[key], where)
        return found
    if was == now:
        return []
    is_long = isinstance(was, list) or len(str(was)) > 30
    return [f"{name} is another one" if is_long else f"{name} was {was}, is {now}"]
