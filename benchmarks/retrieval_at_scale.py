"""Retrieval among millions of texts: memory beyond the embeddings, and speed as a ratio to others' in the same run.

    python benchmarks/retrieval_at_scale.py [--items 100000 1000000 5000000] [--queries 1024 4096]

Ranks (`relevant_ranks`, one answer a query) and the 10 nearest (`search`) of queries among random unit vectors. Each
size runs in a process of its own, whose peak of resident memory is compared with that before the call; the embeddings
themselves are not in it. Times are given relative to a plain product of the same queries and items in blocks, which is
the least that any exact search does; so is that of faiss's exact index where it is installed (IndexFlatIP; pip install
faiss-cpu). The last line says how long all pairs of 1M pictures and 5M texts would take at this rate.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from ko_en_clip.evaluation.queries import BLOCK, search
from ko_en_clip.evaluation.retrieval import relevant_ranks

K = 10


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(*arguments.one, arguments.dimensions)))
        return
    print(f"{'queries':>8} {'items':>9} {'embeddings':>11} {'ranks':>17} {'search':>17} {'faiss':>17}")
    last = {}
    for num_queries, num_items in tqdm(
        [(queries, items) for queries in arguments.queries for items in arguments.items]
    ):
        command = [sys.executable, __file__, "--one", str(num_queries), str(num_items)]
        command += ["--dimensions", str(arguments.dimensions)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        last = json.loads(done.stdout.splitlines()[-1])
        cells = [cell(last[name], last["product"]) for name in ("ranks", "search", "faiss") if name in last]
        held = (num_queries + num_items) * arguments.dimensions * 4 / 2**20
        print(f"{num_queries:8} {num_items:9} {held:7.0f} MiB " + " ".join(f"{text:>17}" for text in cells))
    pairs = arguments.queries[-1] * arguments.items[-1]
    hours = last["ranks"]["seconds"] / pairs * 5e12 / 3600
    print(f"1M by 5M one way at the last rate of ranks, {arguments.dimensions} dimensions: {hours:.1f} hours here.")


def cell(found: dict[str, float], product: dict[str, float]) -> str:
    """Memory, and time as a ratio."""
    return f"{found['mib']:6.0f} MiB {found['seconds'] / product['seconds']:5.2f}x"


def measured(num_queries: int, num_items: int, dimensions: int) -> dict[str, dict[str, float]]:
    """Seconds, and MiB beyond what was there before, of each way."""
    generator = torch.Generator().manual_seed(0)
    queries, items = (unit(number, dimensions, generator) for number in (num_queries, num_items))
    answers = [[row * (num_items // num_queries)] for row in range(num_queries)]
    ways: dict[str, Callable[[], object]] = {
        "product": lambda: [float((queries @ block.T).amax()) for block in items.split(BLOCK)],
        "ranks": lambda: relevant_ranks(queries, items, answers),
        "search": lambda: search(queries, items, K),
    }
    index = faiss_index(items)
    if index is not None:
        ways["faiss"] = lambda: index.search(queries.numpy(), K)
    return {name: cost(way) for name, way in ways.items()}


def unit(rows: int, dimensions: int, generator: torch.Generator) -> torch.Tensor:
    """Random unit vectors, float32."""
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator), out=torch.empty(0))


def faiss_index(items: torch.Tensor):  # noqa: ANN201 - faiss has no types
    """Faiss's exact index of the items; None where it is absent."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items.numpy())
    return index


def cost(way: Callable[[], object]) -> dict[str, float]:
    """Seconds of a call, and the highest resident memory while it runs beyond that before."""
    page = resource.getpagesize()
    statm = Path("/proc/self/statm")

    def resident() -> float:
        return int(statm.read_text().split()[1]) * page / 2**20

    before, highest, done = resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, resident())

    watching = threading.Thread(target=watch)
    watching.start()
    start = time.perf_counter()
    way()
    seconds = time.perf_counter() - start
    done.set()
    watching.join()
    return {"seconds": seconds, "mib": max(0.0, highest - before)}


if __name__ == "__main__":
    main()
