"""Training data: books as one stream of tokens, haiku and stories as rows of chat."""
import multiprocessing
import pathlib
import random
import re

import numpy as np

import haiku
import tokenizer as T

HAIKU_ROW = 128  # a haiku with its request takes about 45 tokens, so a row begins cleanly and holds two or three


def books(texts, part):
    return [p.read_text(encoding="utf-8").strip() + "\n" for p in sorted(pathlib.Path(texts, part).glob("*.txt"))]


def write_haiku(job):
    """`n` haiku as (word, poem); a pool runs it with one seed each."""
    seed, n, rare = job
    grammar = haiku.Grammar(haiku.read_words("held_out.txt"), haiku.read_words("unseen.txt"), rare)
    rng = random.Random(seed)
    return [grammar.sample(rng)[:2] for _ in range(n)]


def haiku_samples(seed, total, workers, rare):
    jobs = [(seed * 1000 + i, total // 64, rare) for i in range(64)]
    if workers == 1:
        return [s for job in jobs for s in write_haiku(job)]
    with multiprocessing.Pool(workers) as pool:
        return [s for part in pool.map(write_haiku, jobs) for s in part]


def story_samples(seed, texts, closed, limit=1100):
    """Chat answered with passages: whole paragraphs from a paragraph's start, about `limit` characters."""
    rng = random.Random(seed)
    out = []
    for book in texts:
        paragraphs = [p for p in book.split("\n\n") if len(p) > 40]
        i = 0
        while i < len(paragraphs):
            passage, size = [], 0
            while i < len(paragraphs) and (size == 0 or size + len(paragraphs[i]) < limit):
                passage.append(paragraphs[i])
                size += len(paragraphs[i])
                i += 1
            text = "\n\n".join(passage).strip()
            if size > 2 * limit or rng.random() > 0.35:
                continue
            kind = rng.random()
            words = [w for w in re.findall(r"\b[a-z]{4,}\b", text) if w not in closed]
            if kind < 0.3 or not words:
                out.append(("Tell me a story.", text))
            elif kind < 0.8:
                # Nouns of the haiku lexicon make better subjects than any other word of the passage.
                nouns = [w for w in words if w in NOUNS] or words
                out.append((f"Tell me a story about {rng.choice(nouns)}.", text))
            else:
                first = re.match(r"(.{20,160}?[.!?])\"? +(?=\S)", text)
                if first:
                    out.append((f"Continue: {first[1]}", text[first.end():]))
    return out


NOUNS = {w for c, by in haiku.syllables.lexicon().items() if c in haiku.syllables.NOUNS for ws in by.values() for w in ws}


def rows(tok, samples, length, seed):
    """Rows of `length` tokens, each of which starts with a request, as a prompt does; what is left of the last sample is cut.

    Half of the joints have <|endoftext|> between samples, the others none, like a conversation of several turns.
    """
    rng = random.Random(seed)
    order = list(samples)
    rng.shuffle(order)
    end = tok.token_to_id(T.END)
    encoded = tok.encode_batch([T.chat(a, b) for a, b in order])
    out, row = [], []
    for e in encoded:
        if row and rng.random() < 0.5:
            row.append(end)
        row += e.ids
        if len(row) > length:
            out.append(row[: length + 1])
            row = []
    return np.array(out, dtype=np.uint16)


def stream(tok, texts):
    end = tok.token_to_id(T.END)
    ids = []
    for e in tok.encode_batch(texts):
        ids.append(end)
        ids += e.ids
    return np.array(ids, dtype=np.uint16)


def prepare(texts, folder, seed, haiku_count, context, workers, log=print):
    """Everything that training reads, made once and kept in `folder`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, valid = books(texts, "train"), books(texts, "validation")
    rare = haiku.syllables.common_words(texts, 4)
    poems = haiku_samples(seed, haiku_count, workers, rare)
    log(f"{len(train)} books, {sum(map(len, train)):,} characters; {len(poems):,} haiku, {len(set(poems)):,} different, about {len({w for w, _ in poems}):,} words")
    # A tenth of the haiku weigh about as much in the merges as haiku do in training.
    tok = T.train(train + ["\n".join(T.chat(haiku.REQUEST.format(w), p) for w, p in poems[: haiku_count // 20]).replace(T.USER, "").replace(T.STOP, "")])
    T.save(tok, folder, context)
    closed = set(haiku.read_words("held_out.txt")) | set(haiku.read_words("unseen.txt"))
    for w in sorted(closed):
        # The word must have the same tokens in the request and in the line.
        assert tok.encode(f" {w}.").ids[:-1] == tok.encode(f" {w}").ids, w
    singles = sum(len(tok.encode(" " + w).ids) == 1 for w in haiku.read_words("held_out.txt"))
    arrays = {
        "train": stream(tok, train), "valid": stream(tok, valid),
        "haiku": rows(tok, [(haiku.REQUEST.format(w), p) for w, p in poems], HAIKU_ROW, seed + 1),
        "story": rows(tok, story_samples(seed + 2, train, closed), context, seed + 3),
    }
    np.savez(folder / "data.npz", **arrays)
    for name, a in arrays.items():
        log(f"{name}: {a.size:,} tokens {a.shape}")
    log(f"held-out words that are one token: {singles}")
    return tok, arrays
