"""How many bytes a package and everything it needs take in this environment.

    python -m benchmarks.installed "simple-diffusion[serving]"

It runs in the environment that it measures, with nothing but `packaging`.
"""

import importlib.metadata
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def installed_bytes(requirements: list[str]) -> dict[str, int]:
    """Bytes of each distribution that the requirements lead to, by its name.

    Args:
        requirements: as in requirements.txt; versions are not looked at.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed.
    """
    found: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(each), True) for each in requirements]
    while waiting:
        requirement, required = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if required:
                raise
            continue  # for another platform
        found.setdefault(name, _bytes_of(distribution))
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in distribution.requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append((needed, False))
    return found


def _bytes_of(distribution: importlib.metadata.Distribution) -> int:
    paths = [distribution.locate_file(file) for file in distribution.files or ()]
    total = 0
    for path in paths:
        try:
            with open(str(path), "rb") as file:  # noqa: PTH123 - Path or its like
                total += file.seek(0, 2)
        except OSError:
            continue  # compiled files that were not written
    return total


if __name__ == "__main__":
    print(sum(installed_bytes(sys.argv[1:]).values()))
