"""What decides every batch of a run, compared with what did."""

from typing import Any


def changes(was: Any, now: Any, name: str = "") -> list[str]:
    """Say in words what differs between two fingerprints of a run's data, which decide every batch."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = []
        for key in dict.fromkeys([*was, *now]):
            where = f"{name}.{key}" if name else str(key)
            if key in was and key in now:
                found += changes(was[key], now[key], where)
            else:
                found.append(f"{where} is {'new' if key in now else 'gone'}")
        return found
    if was == now:
        return []
    is_long = isinstance(was, list) or len(str(was)) > 30
    return [f"{name} has changed" if is_long else f"{name} was {was}, is {now}"]
