#!/usr/bin/env python3
"""Train mantissa-tiny from a folder of texts: data, tokenizer, training, checkpoint, curve, evaluation, reference.

    python models/tiny/train.py --texts DIR --output DIR

DIR holds `train/*.txt` and `validation/*.txt`. One CUDA device is needed; an H200 takes about five minutes.
"""
import argparse
import json
import math
import os
import pathlib
import time

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import data
import model as M
import tokenizer as T

LIMIT = 9_000_000  # bytes of model.safetensors


def settings():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--texts", required=True, help="folder with train/ and validation/")
    ap.add_argument("--output", required=True, help="folder for checkpoint/, the curve and the results")
    ap.add_argument("--cache", help="folder of prepared data to read, or to write if it is empty (default: OUTPUT/data)")
    ap.add_argument("--prepare-only", action="store_true")
    ap.add_argument("--no-evaluation", action="store_true", help="stop after the checkpoint and its curve")
    ap.add_argument("--seed", type=int, default=2)
    ap.add_argument("--layers", type=int, default=5)
    ap.add_argument("--hidden", type=int, default=256)
    ap.add_argument("--intermediate", type=int, default=640)
    ap.add_argument("--kv-heads", type=int, default=2)
    ap.add_argument("--epochs", type=float, default=40, help="passes over the books")
    ap.add_argument("--haiku", type=int, default=1_000_000, help="haiku to write")
    ap.add_argument("--prose-rows", type=int, default=120, help="rows of 512 tokens of books in a step")
    ap.add_argument("--story-rows", type=int, default=8)
    ap.add_argument("--haiku-rows", type=int, default=200, help="rows of 128 tokens of haiku in a step")
    ap.add_argument("--muon-lr", type=float, default=0.02, help="matrices of the layers")
    ap.add_argument("--adam-lr", type=float, default=0.003, help="embedding, norms, biases")
    ap.add_argument("--decay", type=float, default=0.6)
    ap.add_argument("--dropout", type=float, default=0.1, help="of the books alone: haiku are never seen twice often enough to be learnt by heart")
    ap.add_argument("--stable", type=float, default=0.15, help="share of the steps before the rate falls linearly to zero")
    ap.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    return ap.parse_args()


def config(a):
    return {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": T.VOCAB - 1,
        "dtype": "bfloat16", "torch_dtype": "bfloat16", "hidden_act": "silu", "hidden_size": a.hidden, "initializer_range": 0.02,
        "intermediate_size": a.intermediate, "max_position_embeddings": 512, "max_window_layers": a.layers, "model_type": "qwen2",
        "num_attention_heads": a.hidden // 64, "num_hidden_layers": a.layers, "num_key_value_heads": a.kv_heads,
        "pad_token_id": T.VOCAB - 3, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": True,
        "use_cache": True, "use_sliding_window": False, "vocab_size": T.VOCAB,
    }


def export(weights, c, tok, folder):
    """An ordinary Hugging Face folder in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.bfloat16().contiguous() for k, v in sorted(weights.items())}, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    generation = {
        "do_sample": True, "temperature": 0.8, "top_p": 0.9, "eos_token_id": [T.VOCAB - 1, T.VOCAB - 3], "pad_token_id": T.VOCAB - 3,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    T.save(tok, folder, c["max_position_embeddings"])
    size = (folder / "model.safetensors").stat().st_size
    assert size <= LIMIT, size
    return size


def curve(history, path):
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mantissa-tiny"
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 4.5), facecolor="white")
    x = [h["epoch"] for h in history]
    ax.plot(x, [h["train"] for h in history], color="#5b7fa6", lw=1.5, label="training books")
    ax.plot(x, [h["valid"] for h in history], color="#c2410c", lw=2, label="validation books")
    ax.plot(x, [h["haiku"] for h in history], color="#4d7c0f", lw=1.5, label="haiku rows (training)")
    best = min(history, key=lambda h: h["valid"])
    ax.plot(best["epoch"], best["valid"], "o", color="#c2410c")
    ax.annotate(f"{best['valid']:.3f}", (best["epoch"], best["valid"]), textcoords="offset points", xytext=(-4, 9), ha="right")
    ax.set(xlabel="passes over the training books", ylabel="loss (nats per token)", title="mantissa-tiny: training", ylim=(1, 5))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


def fit(a, arrays, c, log):
    """Train; gives the weights at the least validation loss and the history."""
    torch.manual_seed(a.seed)
    rng = np.random.default_rng(a.seed)
    torch.set_float32_matmul_precision("high")
    dev = "cuda"
    net = M.Qwen2(c).to(dev)
    count = sum(p.numel() for p in net.parameters())
    log(f"{count:,} parameters, {2 * count:,} bytes of weights")
    matrices = [p for n, p in net.named_parameters() if p.ndim == 2 and "layers" in n]
    rest = [p for n, p in net.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    muon = M.Muon(matrices, a.decay)
    adam = torch.optim.AdamW(
        [{"params": [p for p in rest if p.ndim == 2]}, {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0}],
        lr=a.adam_lr, betas=(0.9, 0.95), weight_decay=a.decay, fused=True,
    )
    fast = torch.compile(net, dynamic=False)
    context = c["max_position_embeddings"]
    stream = torch.from_numpy(arrays["train"].astype(np.int32)).to(dev)
    valid = torch.from_numpy(arrays["valid"].astype(np.int64)).to(dev)
    n_valid = (len(valid) - 1) // context
    v_ids = valid[: n_valid * context].view(n_valid, context)
    v_targets = valid[1 : n_valid * context + 1].view(n_valid, context)
    stories = torch.from_numpy(arrays["story"].astype(np.int32)).to(dev)
    poems = torch.from_numpy(arrays["haiku"].astype(np.int32)).to(dev)
    span = torch.arange(context + 1, device=dev)

    @torch.no_grad()
    def validate():
        # Rows of the training shape, so that nothing is compiled again; the last batch overlaps the one before.
        b = a.prose_rows + a.story_rows
        total, seen = 0.0, 0
        for i in range(0, n_valid, b):
            j = min(i, max(0, n_valid - b))
            loss = fast(v_ids[j : j + b], v_targets[j : j + b]).item()
            total, seen = total + loss * b, seen + b
        return total / seen

    per_epoch = (len(stream) - context - 1) // (context * a.prose_rows)
    steps, warm = int(per_epoch * a.epochs), 100
    every = max(1, per_epoch // 2)
    history, best, kept, t0 = [], math.inf, None, time.time()
    sums = torch.zeros(2, device=dev)
    starts, story_order, poem_order = iter(()), iter(()), iter(())

    def take(it, n, rows):
        got = list(zip(range(n), it))
        if len(got) < n:
            it = iter(rng.permutation(rows).tolist())
            got = list(zip(range(n), it))
        return it, torch.tensor([g for _, g in got], device=dev)

    for step in range(steps):
        if step % per_epoch == 0:
            # Windows start elsewhere in every pass, so that no two passes see the same rows.
            offset = int(rng.integers(context))
            n = (len(stream) - context - 1 - offset) // context
            starts = iter((offset + context * rng.permutation(n)).tolist())
        at = torch.tensor([next(starts) for _ in range(a.prose_rows)], device=dev)
        story_order, s = take(story_order, a.story_rows, len(stories))
        poem_order, p = take(poem_order, a.haiku_rows, len(poems))
        long = torch.cat([stream[at[:, None] + span], stories[s]]).long()
        short = poems[p].long()
        share = short.numel() / (short.numel() + long.numel())
        frac = step / steps
        scale = min(1, (step + 1) / warm) * min(1, (1 - frac) / (1 - a.stable))
        for group in adam.param_groups:
            group["lr"] = a.adam_lr * scale
        loss_long = fast(long[:, :-1].contiguous(), long[:, 1:].contiguous(), a.dropout)
        (loss_long * (1 - share)).backward()
        loss_short = fast(short[:, :-1].contiguous(), short[:, 1:].contiguous())
        (loss_short * share).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        muon.step(a.muon_lr * scale)
        adam.step()
        net.zero_grad(set_to_none=True)
        sums += torch.stack([loss_long.detach(), loss_short.detach()])
        if (step + 1) % every == 0 or step + 1 == steps:
            n = (step % every) + 1
            train, poem = (sums / n).tolist()
            sums.zero_()
            v = validate()
            history.append({"step": step + 1, "epoch": (step + 1) / per_epoch, "train": train, "haiku": poem, "valid": v})
            if v < best:
                best, kept = v, {k: w.detach().clone() for k, w in net.named_parameters()}
            rate = (step + 1) * (long.numel() + short.numel()) / (time.time() - t0)
            log(f"step {step + 1}/{steps} epoch {(step + 1) / per_epoch:.1f} train {train:.4f} haiku {poem:.4f} "
                f"valid {v:.4f} best {best:.4f} {rate / 1e6:.2f} Mtok/s {time.time() - t0:.0f} s")
    return kept, history


def main():
    a = settings()
    out = pathlib.Path(a.output)
    out.mkdir(parents=True, exist_ok=True)
    cache = pathlib.Path(a.cache or out / "data")

    def log(text):
        print(text, flush=True)

    if (cache / "data.npz").exists():
        tok = Tokenizer.from_file(str(cache / "tokenizer.json"))
        arrays = dict(np.load(cache / "data.npz"))
    else:
        tok, arrays = data.prepare(a.texts, cache, a.seed, a.haiku, 512, a.workers, log)
    if a.prepare_only:
        return
    c = config(a)
    kept, history = fit(a, arrays, c, log)
    size = export(kept, c, tok, out / "checkpoint")
    best = min(history, key=lambda h: h["valid"])
    log(f"checkpoint of step {best['step']}, validation loss {best['valid']:.4f}, {size:,} bytes")
    ran = {k: v for k, v in vars(a).items() if k not in ("texts", "output", "cache", "workers", "prepare_only", "no_evaluation")}
    records = ",\n".join(json.dumps(h) for h in history)
    (out / "history.json").write_text(f'{{"settings": {json.dumps(ran)},\n"history": [\n{records}\n]}}\n')
    curve(history, out / "loss.svg")
    if not a.no_evaluation:
        import evaluate
        import reference

        evaluate.run(out / "checkpoint", pathlib.Path(a.texts, "validation"), out, log=log)
        reference.run(out / "checkpoint", out)


if __name__ == "__main__":
    main()
