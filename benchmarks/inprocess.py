"""The service's own work without the service: decode, preprocess, infer, in threads, in a loop.

A program for the version's own Python path, not shipway's: takes the model folder, the number of
threads and the seconds, and prints requests per second and the 95th percentile as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.scoring import Classifier


def main(model: Path, threads: int, seconds: float) -> None:
    """Score the golden exchanges' images, picked at random as the load test does."""
    classifier = Classifier(model, digest=None, max_pixels=24_000_000)
    images = [_image(file) for file in sorted((model / "golden" / "exchanges").glob("*.json"))]

    def loop(_: int) -> list[float]:
        found = []
        while (began := time.perf_counter()) < ends:
            classifier.predict(classifier.tensor(random.choice(images)))  # noqa: S311 - no secret
            found.append(time.perf_counter() - began)
        return found

    ends = time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        times = sorted(each for found in pool.map(loop, range(threads)) for each in found)
    print(json.dumps({"rate": len(times) / seconds, "p95_ms": 1000 * times[int(0.95 * (len(times) - 1))]}))


def _image(file: Path) -> bytes:
    """Return what the exchange sends; one that sends no image fails, so that both sides do the same work."""
    name: str = json.loads(file.read_bytes())["request"]["body_file"]
    return (file.parent / name).read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
