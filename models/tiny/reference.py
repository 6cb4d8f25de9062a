#!/usr/bin/env python3
"""Numbers of transformers for the parity test: ids, greedy tokens and logits of three prompts.

    python models/tiny/reference.py --checkpoint models/tiny/checkpoint --output models/tiny
"""
import argparse
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
PROMPTS = {
    "prose": "The old clock in the hall struck twelve, and nobody in the house",
    "haiku": "<|im_start|>user\nWrite a haiku about lantern.<|im_end|>\n<|im_start|>assistant\n",
    "unicode": "caf\u00e9 \u2014 na\u00efve \u65e5\u672c \U0001f319 42 \u03c0r\u00b2\n",
}
NEW = 48
torch.set_num_threads(4)  # more threads only wait for each other on matrices this small


@torch.no_grad()
def run(checkpoint, output):
    # The processor in f64 gives the logits, so that they are right to the last bit of the f32 they are kept in.
    tok = AutoTokenizer.from_pretrained(str(checkpoint))
    nets = {t: AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=t, attn_implementation="eager").eval()
            for t in (torch.float32, torch.float64)}
    cases, tensors = [], {}
    for name, text in PROMPTS.items():
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert len(ids) <= 40 and tok.decode(ids) == text, name
        made, margins = list(ids), []
        for _ in range(NEW):
            top = nets[torch.float32](torch.tensor([made])).logits[0, -1].topk(2)
            margins.append(round((top.values[0] - top.values[1]).item(), 5))
            made.append(top.indices[0].item())
        logits = nets[torch.float64](torch.tensor([ids])).logits[0]
        single = nets[torch.float32](torch.tensor([ids])).logits[0]
        tensors[f"{name}.logits"] = logits.float().contiguous()
        cases.append({
            "name": name, "text": text, "ids": ids, "greedy": made[len(ids):], "margins": margins,
            "greedy_text": tok.decode(made[len(ids):]), "largest_f32_error": (single.double() - logits).abs().max().item(),
        })
    note = "f32 weights widened from bf16; greedy in f32 without stopping at eos; margins: first less second logit; logits from f64, kept as f32"
    record = {"transformers": transformers.__version__, "torch": torch.__version__, "note": note, "prompts": cases}
    output = pathlib.Path(output)
    (output / "reference.json").write_text(json.dumps(record, indent=1) + "\n")
    save_file(tensors, str(output / "reference.safetensors"))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--checkpoint", default=HERE / "checkpoint")
    ap.add_argument("--output", default=HERE)
    a = ap.parse_args()
    run(a.checkpoint, a.output)
