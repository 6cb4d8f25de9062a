#!/usr/bin/env python3
"""Times mantissa and transformers one after the other on the same GPU: prefill and decode of one sequence.

    python scripts/compare_gpu.py --mantissa target/gpu/mantissa                    both models, bf16 and f16
    python scripts/compare_gpu.py --mantissa target/gpu/mantissa --arch qwen2.5-0.5b --policy bf16 --compile none

Needs torch with CUDA and transformers. The weights are random and of the true shapes: those of `mantissa synth` for
mantissa, of transformers' own initialisation for transformers. transformers decodes in two ways: eager, as a user
meets it, and compiled and captured as one CUDA graph with a static cache, where it is at its best. Compiling takes half
a minute, so that every model and policy has a process of its own, which compiles while others do; nothing is timed
before the last one is ready, and then one at a time. In the same run the rate of torch's matrix product of 8192 by 8192
by 8192 is measured, of which mantissa's prefill is given as a share: operations of linear layers and causal attention,
counted once. Every figure is a median.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
PROMPTS = [512, 2048, 8192]
CONTEXT = 512
EAGER_TOKENS, GRAPH_TOKENS = 16, 128
REPETITIONS = 5


def timed(run, repetitions: int = REPETITIONS) -> float:
    """Median seconds of a run, the GPU's work included."""
    seconds = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def matrix_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """Operations per second of a product of two square matrices."""
    left, right = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    run = lambda: [left @ right for _ in range(4)]
    run()
    return 4 * 2 * size**3 / timed(run)


def static_cache(config, dtype: torch.dtype, length: int) -> StaticCache:
    """A cache of fixed length; its constructor differs between versions."""
    try:
        return StaticCache(config=config, max_cache_len=length)
    except TypeError:
        return StaticCache(config=config, max_batch_size=1, max_cache_len=length, device="cuda", dtype=dtype)


class Peer:
    """transformers with random weights of a model's shapes."""

    def __init__(self, config, dtype: torch.dtype):
        torch.manual_seed(1)
        self.config, self.dtype = config, dtype
        with torch.device("cuda"):
            self.model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype, attn_implementation="sdpa")
        self.model.eval()

    def ids(self, length: int) -> torch.Tensor:
        return torch.randint(1, self.config.vocab_size, (1, length), device="cuda")

    def prefill(self, length: int) -> float:
        """Seconds from a prompt to the logits of its last position."""
        ids = self.ids(length)
        run = lambda: self.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        run()
        return timed(run)

    def decode_eager(self) -> float:
        """Tokens per second, each from a call of the model."""
        state = self.model(input_ids=self.ids(CONTEXT), use_cache=True, logits_to_keep=1)

        def step():
            nonlocal state
            token = state.logits[:, -1:].argmax(-1)
            state = self.model(input_ids=token, past_key_values=state.past_key_values, use_cache=True)

        for _ in range(4):
            step()
        return 1 / timed(step, EAGER_TOKENS)

    def capture(self, mode: str) -> torch.cuda.CUDAGraph:
        """One token as a graph, whose token is the next one's input."""
        cache = static_cache(self.config, self.dtype, CONTEXT + 8 * GRAPH_TOKENS)
        place = torch.arange(CONTEXT, device="cuda")
        state = self.model(input_ids=self.ids(CONTEXT), past_key_values=cache, cache_position=place, use_cache=True)
        token = state.logits[:, -1:].argmax(-1).clone()
        place = torch.tensor([CONTEXT], device="cuda")
        forward = self.model.forward if mode == "none" else torch.compile(self.model.forward, mode=mode)

        def step():
            logits = forward(input_ids=token, past_key_values=cache, cache_position=place, use_cache=True).logits
            token.copy_(logits[:, -1:].argmax(-1))
            place.add_(1)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        # What the graph reads and writes must live as long as it does.
        self.captured = (cache, token, place, forward)
        return graph

    def decode_graph(self, graph: torch.cuda.CUDAGraph) -> float:
        """Tokens per second of a captured graph."""
        run = lambda: [graph.replay() for _ in range(GRAPH_TOKENS)]
        run()
        return GRAPH_TOKENS / timed(run)


@torch.inference_mode()
def peer_process(folder: Path, policy: str, args, pipe) -> None:
    """Compiles, says so, waits for its turn, and sends what it measured."""
    peer = Peer(AutoConfig.from_pretrained(folder), DTYPES[policy])
    graph = peer.capture(args.compile)
    pipe.send("ready")
    pipe.recv()
    figures = {f"prefill {length}": peer.prefill(length) * 1e3 for length in args.prompt}
    figures["decode eager"] = peer.decode_eager()
    figures["decode graph"] = peer.decode_graph(graph)
    pipe.send(figures)


def start_peer(folder: Path, policy: str, args):
    """A process that compiles a model, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=peer_process, args=(folder, policy, args, there), daemon=True).start()
    there.close()
    return here


def measure_mantissa(folder: Path, args) -> dict:
    """Everything of mantissa, by policy and test."""
    command = [args.mantissa, "bench", folder, "--device", "cuda:0", "--json", "--decode-after", CONTEXT]
    command += ["--generate", GRAPH_TOKENS, "--repetitions", REPETITIONS]
    command += ["--prompt", ",".join(map(str, args.prompt))]
    for policy in args.policy:
        command += ["--policy", policy]
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE)
    figures = {}
    for policy in json.loads(done.stdout)["policies"]:
        for row in policy["rows"]:
            test = f"prefill {row['tokens']}" if row["test"] == "prefill" else "decode"
            figures[policy["policy"], test] = row
    return figures


def print_rows(arch: str, policy: str, ours: dict, peers: dict, product_rate: float) -> None:
    """One line for each test; the ratio is how many times faster mantissa is."""
    for test, theirs in peers.items():
        prefill = test.startswith("prefill")
        line = f"{arch:14} {policy:5} {test:13} transformers {theirs:8.2f} {'ms' if prefill else '/s'}"
        row = ours.get((policy, test if prefill else "decode"))
        if row and prefill:
            milliseconds = row["seconds"]["median"] * 1e3
            share = row["achieved_per_second"] / product_rate
            line += f"   mantissa {milliseconds:8.2f} ms   {theirs / milliseconds:6.2f} times, {share:.1%} of the product"
        elif row:
            rate = row["tokens_per_second"]["median"]
            line += f"   mantissa {rate:8.2f} /s   {rate / theirs:6.2f} times, {row['share']:.1%} of the ceiling"
        print(line, flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mantissa", help="the program; without it --arch must name folders, and transformers is timed alone")
    parser.add_argument("--arch", action="append", help="a shape of `mantissa synth`, or a folder with a config.json")
    parser.add_argument("--policy", action="append", choices=sorted(DTYPES))
    parser.add_argument("--prompt", type=int, action="append", help="length of a prompt")
    parser.add_argument("--compile", default="default", choices=["none", "default", "max-autotune-no-cudagraphs"])
    args = parser.parse_args()
    args.arch = args.arch or ["qwen2.5-0.5b", "llama-3.2-1b"]
    args.policy = args.policy or ["bf16", "f16"]
    args.prompt = args.prompt or PROMPTS
    return args


def checkpoint(arch: str, scratch: Path, args) -> Path:
    """The folder of a model, made where it is not one already."""
    if Path(arch).is_dir():
        return Path(arch)
    subprocess.run([args.mantissa, "synth", "--arch", arch, "--dtype", "bf16", scratch / arch], check=True)
    return scratch / arch


def main() -> None:
    args = arguments()
    started = time.perf_counter()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {arch: checkpoint(arch, Path(scratch), args) for arch in args.arch}
        peers = {(arch, policy): start_peer(folders[arch], policy, args) for arch in folders for policy in args.policy}
        for pipe in peers.values():
            pipe.recv()
        print(f"transformers is compiled after {time.perf_counter() - started:.1f} s", flush=True)
        rates = {policy: matrix_rate(DTYPES[policy]) for policy in args.policy}
        for policy, rate in rates.items():
            print(f"torch's {policy} product of 8192^3: {rate / 1e12:.1f} TFLOP/s", flush=True)
        for arch, folder in folders.items():
            ours = measure_mantissa(folder, args) if args.mantissa else {}
            for policy in args.policy:
                peers[arch, policy].send("go")
                print_rows(arch, policy, ours, peers[arch, policy].recv(), rates[policy])
    print(f"{time.perf_counter() - started:.1f} s in all")


if __name__ == "__main__":
    main()
