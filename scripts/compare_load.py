#!/usr/bin/env python3
"""Times loading a checkpoint in turn with reading its file into fresh memory, which is the floor of any loading.

    mantissa synth --arch qwen2.5-0.5b --dtype bf16 ./qwen
    python scripts/compare_load.py ./qwen --policy bf16 --mantissa target/release/mantissa

The file is read once beforehand, so that both come from the page cache. `read` is one `readinto` of the whole file into
memory that the process has never touched, by one thread.
"""

import argparse
import json
import mmap
import statistics
import subprocess
import time
from pathlib import Path


def read_seconds(file: Path) -> float:
    """Seconds to read the file into new pages."""
    size = file.stat().st_size
    with mmap.mmap(-1, size) as memory, file.open("rb", buffering=0) as source:
        start, at = time.perf_counter(), 0
        with memoryview(memory) as view:
            while at < size:
                at += source.readinto(view[at:])
        return time.perf_counter() - start


def load_seconds(args: argparse.Namespace) -> float:
    """Seconds that `mantissa bench` says loading took."""
    command = [args.mantissa, "bench", str(args.folder), "--policy", args.policy, "--prompt", "8", "--generate", "1"]
    command += ["--repetitions", "1", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["policies"][0]["load"]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", default="bf16")
    parser.add_argument("--mantissa", default="mantissa")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    file = args.folder / "model.safetensors"
    read_seconds(file)
    pairs = [(load_seconds(args), read_seconds(file)) for _ in range(args.rounds)]
    for name, values in zip(("load", "read", "ratio"), zip(*((a, b, a / b) for a, b in pairs))):
        print(f"{name}: median {statistics.median(values):.2f}, {min(values):.2f}..{max(values):.2f}")


if __name__ == "__main__":
    main()
