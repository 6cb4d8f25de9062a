#!/usr/bin/env python3
"""Times mantissa and llama.cpp in turn on the same weights, the same tokens and the same threads.

    pip install llama-cpp-python gguf numpy
    mantissa synth --arch qwen2.5-0.5b --dtype bf16 ./qwen
    python scripts/compare_llama_cpp.py ./qwen --policy bf16 --mantissa target/release/mantissa

The checkpoint (a Qwen2 folder with one model.safetensors) is written as GGUF beside it, in its own dtype, once. Each
round runs `mantissa bench` and then llama.cpp; what is printed are medians over the rounds, their range, and the median
of the ratios round by round. Machines that are shared drift: the ratios are what can be trusted.

With `--llama-bench PROGRAM` each round also runs that program, built from a fork such as ik_llama.cpp (the source package
`ik-llama-cpp-python` holds its source), and `--fork-options` adds options to it, such as `-rtr 1`. Its prompt and its
tokens are timed apart, so that its tokens come after an empty context.
"""

import argparse
import json
import random
import statistics
import struct
import subprocess
import time
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama

TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
} | {f"self_attn.{x}_proj.{kind}": f"attn_{x}.{kind}" for x in "qkv" for kind in ("weight", "bias")}
KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Qwen2 tensor."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{TENSORS[rest]}"


def write_gguf(folder: Path, target: Path) -> None:
    """The checkpoint as GGUF: matrices as they are stored, norms and biases in f32, no vocabulary."""
    config = json.loads((folder / "config.json").read_text())
    file = np.memmap(folder / "model.safetensors", mode="r")
    header_length = struct.unpack("<Q", file[:8].tobytes())[0]
    header = json.loads(file[8 : 8 + header_length].tobytes())
    header.pop("__metadata__", None)
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, info in header.items():
        start, end = (8 + header_length + offset for offset in info["data_offsets"])
        raw, shape = file[start:end], info["shape"]
        decode = {
            "BF16": lambda raw: (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32),
            "F16": lambda raw: raw.view(np.float16).astype(np.float32),
            "F32": lambda raw: raw.view(np.float32),
        }[info["dtype"]]
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), decode(raw).copy())
        elif info["dtype"] == "BF16":
            data = raw.reshape(shape[0], -1)
            writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            numbers = {"F16": np.float16, "F32": np.float32}[info["dtype"]]
            writer.add_tensor(gguf_name(name), raw.view(numbers).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_llama_cpp(model: Llama, tokens: list[int], generate: int) -> tuple[float, float]:
    """Prefill and decode in tokens a second."""
    model.reset()
    model._ctx.kv_cache_clear()
    start = time.perf_counter()
    model.eval(tokens)
    middle = time.perf_counter()
    for token in tokens[:generate]:
        model.eval([token])
    end = time.perf_counter()
    return len(tokens) / (middle - start), generate / (end - middle)


def run_fork(args: argparse.Namespace, model: Path) -> tuple[float, float]:
    """Prefill and decode in tokens a second, by llama-bench of a fork."""
    command = [args.llama_bench, "-m", str(model), "-t", str(args.threads), "-p", str(args.prompt)]
    command += ["-n", str(args.generate), "-r", "1", "-mmp", "0", "-ctk", args.policy, "-ctv", args.policy, "-o", "json"]
    command += args.fork_options.split()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    prefill, decode = (row["avg_ts"] for row in json.loads(output))
    return prefill, decode


def run_mantissa(args: argparse.Namespace) -> dict:
    """One `mantissa bench` of one policy."""
    command = [args.mantissa, "bench", str(args.folder), "--policy", args.policy, "--prompt", str(args.prompt)]
    command += ["--generate", str(args.generate), "--repetitions", "1", "--threads", str(args.threads), "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output)["policies"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--policy", default="bf16", choices=sorted(KV_TYPES))
    parser.add_argument("--mantissa", default="mantissa")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama-bench", help="llama-bench of a fork, to be timed as well")
    parser.add_argument("--fork-options", default="", help="further options of that program")
    args = parser.parse_args()

    target = args.folder / "model.gguf"
    if not target.exists():
        write_gguf(args.folder, target)
    kv_type = KV_TYPES[args.policy]
    model = Llama(
        str(target), n_ctx=args.prompt + args.generate + 64, n_batch=512, n_ubatch=512, n_threads=args.threads,
        n_threads_batch=args.threads, type_k=kv_type, type_v=kv_type, verbose=False,
    )
    generator = random.Random(1)
    tokens = [generator.randrange(model.n_vocab()) for _ in range(args.prompt)]
    run_llama_cpp(model, tokens, args.generate)
    rounds = []
    for _ in range(args.rounds):
        rates = {row["test"]: row for row in run_mantissa(args)["rows"]}
        peers = {"llama.cpp": run_llama_cpp(model, tokens, args.generate)}
        if args.llama_bench:
            peers["fork"] = run_fork(args, target)
        rounds.append((rates, peers))
    for index, test in enumerate(("prefill", "decode")):
        ours = [rates[test]["tokens_per_second"]["median"] for rates, _ in rounds]
        share = statistics.median(rates[test]["share"] for rates, _ in rounds)
        print(f"{args.policy} {test}: mantissa {spread(ours, 1)} tokens/s, share of the ceiling {share:.1%}")
        for name in rounds[0][1]:
            theirs = [peers[name][index] for _, peers in rounds]
            ratios = [a / b for a, b in zip(ours, theirs)]
            print(f"{args.policy} {test}: {name} {spread(theirs, 1)} tokens/s, ratio {spread(ratios, 2)}")


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


if __name__ == "__main__":
    main()
