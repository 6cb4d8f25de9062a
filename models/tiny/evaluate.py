#!/usr/bin/env python3
"""Measure a checkpoint through transformers, with the bf16 weights widened to f32.

    python models/tiny/evaluate.py --checkpoint models/tiny/checkpoint --output DIR
"""
import argparse
import collections
import json
import math
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import haiku

HERE = pathlib.Path(__file__).resolve().parent
PROSE = ("It was a dark night, and the rain", "The old man looked at the boy and said,", '"My dear," said her mother, "')
CHAT = ("Tell me a story.", "Tell me a story about dog.", "Continue: The door opened slowly.")


def load(checkpoint):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    tok = AutoTokenizer.from_pretrained(checkpoint)
    net = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(device).eval()
    return tok, net


@torch.no_grad()
def perplexity(tok, net, path, context=512, stride=256):
    """Nats over one text, which follows <|endoftext|>; every window but the first scores its last `stride` tokens."""
    text = path.read_text(encoding="utf-8").strip() + "\n"
    ids = [tok.convert_tokens_to_ids("<|endoftext|>")] + tok(text, add_special_tokens=False)["input_ids"]
    total, scored, begin = 0.0, 1, 0
    while scored < len(ids):
        window = torch.tensor(ids[begin : begin + context], device=net.device)[None]
        logp = net(window).logits[0, :-1].double().log_softmax(-1)
        nats = -logp.gather(1, window[0, 1:, None])[:, 0]
        new = begin + window.shape[1] - scored
        total, scored = total + nats[-new:].sum().item(), scored + new
        begin += stride
    return total, len(ids) - 1, len(text)


@torch.no_grad()
def answer(tok, net, prompts, sample, new=60, seed=0):
    """Continuations of the prompts; those of equal length are run together, so that nothing is padded."""
    torch.manual_seed(seed)
    groups, out = collections.defaultdict(list), [None] * len(prompts)
    for i, p in enumerate(prompts):
        ids = tok(p, add_special_tokens=False)["input_ids"]
        groups[len(ids)].append((i, ids))
    how = {} if sample else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    for n, group in sorted(groups.items()):
        batch = torch.tensor([ids for _, ids in group], device=net.device)
        made = net.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=new, **how)
        for (i, _), row in zip(group, made.tolist()):
            out[i] = tok.decode(row[n:], skip_special_tokens=True)
    return out


def chat(tok, text):
    return tok.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)


def pass_rates(tok, net, words, known, rounds):
    prompts = [chat(tok, haiku.REQUEST.format(w)) for w in words]
    out = {}
    for name, sample, repeat in (("greedy", False, 1), ("sampled", True, rounds)):
        good, reasons, failed = 0, collections.Counter(), []
        for seed in range(repeat):
            for w, text in zip(words, answer(tok, net, prompts, sample, seed=seed)):
                found = haiku.faults(text, w, known)
                good += not found
                reasons.update(found)
                if found and len(failed) < 8:
                    failed.append([w, text, found])
        n = len(words) * repeat
        out[name] = {"poems": n, "passed": good, "rate": round(good / n, 4), "faults": dict(reasons), "failed": failed}
    return out


def run(checkpoint, validation, output, rounds=10, log=print):
    output = pathlib.Path(output)
    tok, net = load(str(checkpoint))
    known = haiku.syllables.table()
    result = {"parameters": sum(p.numel() for p in net.parameters()), "validation": {}, "haiku": {}}
    every = [0.0, 0, 0]
    for path in sorted(pathlib.Path(validation).glob("*.txt")):
        one = perplexity(tok, net, path)
        every = [a + b for a, b in zip(every, one)]
        result["validation"][path.stem] = summary(*one)
    result["validation"]["both"] = summary(*every)
    log(json.dumps(result["validation"], indent=1))
    for name in ("held_out", "unseen"):
        r = result["haiku"][name] = pass_rates(tok, net, haiku.read_words(f"{name}.txt"), known, rounds)
        for how in r:
            log(f"haiku {name} {how}: {r[how]['passed']}/{r[how]['poems']} = {r[how]['rate']:.1%} faults {r[how]['faults']}")
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "samples.md").write_text(samples(tok, net))


def summary(nats, tokens, characters):
    return {
        "tokens": tokens, "characters": characters, "nats_per_token": round(nats / tokens, 5), "perplexity_per_token": round(math.exp(nats / tokens), 3),
        "nats_per_character": round(nats / characters, 5), "bits_per_character": round(nats / characters / math.log(2), 5),
    }


def samples(tok, net):
    """The first that came, not chosen."""
    words = haiku.read_words("held_out.txt")
    words = words[:: len(words) // 12][:12]
    prompts = [chat(tok, haiku.REQUEST.format(w)) for w in words]
    parts = ["# Samples", "", "Written by `evaluate.py`, none chosen: f32 through transformers, seed 0.", ""]
    g = net.generation_config
    for how, flag in (("greedy", False), (f"temperature {g.temperature}, top_p {g.top_p}", True)):
        parts += [f"## Haiku about held-out words, {how}", ""]
        for w, text in zip(words, answer(tok, net, prompts, flag)):
            parts += [f"`{w}`", "", "```text", text.strip(), "```", ""]
        parts += [f"## Prose, {how}", ""]
        for p, text in zip(PROSE, answer(tok, net, PROSE, flag, new=120)):
            parts += ["```text", f"[{p}]{text}".rstrip(), "```", ""]
        parts += [f"## Chat, {how}", ""]
        for p, text in zip(CHAT, answer(tok, net, [chat(tok, p) for p in CHAT], flag, new=160)):
            parts += [f"`{p}`", "", "```text", text.strip(), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", default=HERE / "checkpoint")
    ap.add_argument("--validation", default=HERE / "validation")
    ap.add_argument("--output", default=".")
    ap.add_argument("--rounds", type=int, default=10, help="sampled poems per word")
    a = ap.parse_args()
    run(a.checkpoint, a.validation, a.output, a.rounds)
