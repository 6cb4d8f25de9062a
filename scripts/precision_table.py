#!/usr/bin/env python3
"""Measures every policy on the validation texts and writes the tables of docs/precision.md.

    cargo build --release
    python3 scripts/precision_table.py

Runs `mantissa eval perplexity`, `eval haiku` and `bench` of the built-in model, one policy after another, and puts what
they report between the markers of the document. Nothing in the tables is typed by hand. Needs nothing but Python.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLICIES = ["f32", "f16", "bf16", "memory-efficient", "high-precision", "bf16,kv_cache=f8e4m3"]
REFERENCE = "f32"
# The FP8 cache, each with the policy that differs from it in nothing but the cache.
CACHES = [("bf16,kv_cache=f8e4m3", "bf16"), ("memory-efficient", "f16")]
BEGIN, END = "<!-- precision_table.py: begin -->", "<!-- precision_table.py: end -->"


class Mantissa:
    """The program, and what was asked of it."""

    def __init__(self, program: Path, texts: list[Path], windows: int | None) -> None:
        self.program, self.texts = program, texts
        self.limit = ["--windows", str(windows)] if windows else []

    def json(self, *arguments: str) -> dict:
        command = [str(self.program), *arguments, "--json"]
        print("mantissa", " ".join(arguments), file=sys.stderr, flush=True)
        # Policies, threads and instruction sets are the defaults, whoever runs this.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MANTISSA_")}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, env=environment)
        return json.loads(done.stdout)

    def perplexity(self, policy: str, against: str) -> dict:
        texts = [str(text.relative_to(ROOT) if text.is_relative_to(ROOT) else text) for text in self.texts]
        return self.json("eval", "perplexity", *texts, "--policy", policy, "--against", against, *self.limit)

    def haiku(self, policy: str) -> float:
        return self.json("eval", "haiku", "--policy", policy)["policies"][0]["pass_percent"]

    def speed(self, policy: str) -> dict[str, float]:
        rows = self.json("bench", "--policy", policy, "--prompt", "256", "--generate", "128")["policies"][0]["rows"]
        return {row["test"]: row["tokens_per_second"]["median"] for row in rows}


def plus_minus(estimate: dict, digits: int) -> str:
    return f"{estimate['value']:.{digits}f} ± {estimate['error']:.{digits}f}"


def nats(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose first column holds words, the others numbers."""
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, rule, *rows])


def quality(mantissa: Mantissa) -> tuple[str, dict[str, dict]]:
    """Perplexity, distance from f32, and haiku of every policy."""
    found = {policy: mantissa.perplexity(policy, REFERENCE) for policy in POLICIES}
    rows = []
    for policy in POLICIES:
        total = found[policy]["total"]
        against = total["against"]
        rows.append([
            f"`{policy}`",
            plus_minus(total["perplexity"], 3),
            f"{total['nats_per_character']:.4f}",
            f"{against['difference']['value']:+.4f} ± {against['difference']['error']:.4f}",
            nats(against["kl_divergence"]["mean"]["value"]),
            nats(against["kl_divergence"]["p99"]),
            f"{100 * against['same_top']['value']:.2f} %",
            f"{mantissa.haiku(policy):.1f} %",
        ])
    headings = ["policy", "perplexity", "nats/character", "difference to f32", "mean KL", "99 % KL", "same top token", "haiku"]
    return table(headings, rows), found


def cost(mantissa: Mantissa, found: dict[str, dict]) -> str:
    """Memory and speed of every policy."""
    memory = {policy: found[policy]["policy"]["memory"] for policy in POLICIES}
    rows = []
    for policy in POLICIES:
        speed, cache = mantissa.speed(policy), memory[policy]["cache_per_token"]
        rows.append([
            f"`{policy}`",
            f"{memory[policy]['weights'] / 1e6:.2f} MB",
            f"{cache} B",
            f"{cache / memory['f16']['cache_per_token']:.3f}",
            f"{speed['prefill']:.0f}",
            f"{speed['decode']:.0f}",
        ])
    headings = ["policy", "weights", "cache per token", "of f16's", "prefill tokens/s", "decode tokens/s"]
    return table(headings, rows)


def fp8_cache(mantissa: Mantissa) -> str:
    """What nothing but the cache's format changes."""
    rows = []
    for policy, against in CACHES:
        result = mantissa.perplexity(policy, against)
        total = result["total"]
        other = total["against"]
        sizes = [result[side]["memory"]["cache_per_token"] for side in ("policy", "against")]
        rows.append([
            f"`{policy}`",
            f"`{against}`",
            f"{total['perplexity']['value']:.4f}",
            f"{other['perplexity']['value']:.4f}",
            f"{other['difference']['value']:+.4f} ± {other['difference']['error']:.4f}",
            nats(other["kl_divergence"]["mean"]["value"]),
            f"{100 * other['same_top']['value']:.2f} %",
            f"{sizes[0]} / {sizes[1]} B = {sizes[0] / sizes[1]:.3f}",
        ])
    headings = ["policy", "against", "perplexity", "of the other", "difference", "mean KL", "same top token", "cache per token"]
    return table(headings, rows)


def revision() -> str:
    """The commit, and whether the tree differs from it but in the document that is written here."""
    run = lambda *command: subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout
    changed = run("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs").strip()
    return run("git", "rev-parse", "--short", "HEAD").strip() + (" with changes" if changed else "")


def report(mantissa: Mantissa) -> str:
    # Other programs slow the speeds down, and nothing else: let the reader know.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    judged, found = quality(mantissa)
    caches, costs = fp8_cache(mantissa), cost(mantissa, found)
    some = found[REFERENCE]
    total = some["total"]
    date = datetime.now(timezone.utc).date().isoformat()
    note = (
        f"Measured by `python3 scripts/precision_table.py` on {date} at commit {revision()}: {some['model']} on "
        f"{some['device']}, {some['isa']}, {some['threads']} threads; {total['windows']} windows of "
        f"{some['windows']['context']} tokens, {total['predicted']} predictions over {total['characters']} characters of "
        f"{len(some['texts'])} books. Load of the machine before the start: {load:.1f}."
    )
    return "\n\n".join([note, judged, "The FP8 cache, each against the policy that differs in nothing else:", caches,
                        "Memory and speed (a prompt of 256 tokens, then 128 one by one):", costs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mantissa", type=Path, default=ROOT / "target/release/mantissa", help="the program")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/precision.md", help="where the tables go")
    parser.add_argument("--windows", type=int, help="windows of each text at most, for a quick look")
    parser.add_argument("texts", type=Path, nargs="*", help="texts; models/tiny/validation/*.txt if not given")
    args = parser.parse_args()
    texts = [text.resolve() for text in args.texts] or sorted((ROOT / "models/tiny/validation").glob("*.txt"))
    before, found_begin, rest = args.document.read_text().partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        sys.exit(f"{args.document} has no markers {BEGIN} and {END}")
    made = report(Mantissa(args.mantissa.resolve(), texts, args.windows))
    args.document.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")


if __name__ == "__main__":
    main()
