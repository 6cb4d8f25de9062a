#!/usr/bin/env python3
"""A grammar that writes haiku of 5, 7 and 5 syllables about a given word.

    python haiku.py --word lantern --count 5   write some
    python haiku.py --check                    check thousands: shape, syllables, the word, repetitions
    python haiku.py --split                    draw words/held_out.txt and words/unseen.txt (done once)
"""
import argparse
import collections
import functools
import itertools
import random
import re

import syllables
import templates

FUNCTION = set(syllables.lexicon().get("function", {}).get(1, [])) | set(syllables.lexicon()["function"].get(2, []))
SHAPE = (5, 7, 5)
REQUEST = "Write a haiku about {}."
ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st th tr".split()
CODAS = "b d g k ll m n nd p rk sh ss st t x".split()
# Words of one class and length that fill lines, and the seed that chooses them.
FILLERS, FILLER_SEED = 12, 3
SOLID = set("animal plant sky land place thing tool food body stuff".split())


def read_words(name):
    return [w for w in (syllables.WORDS / name).read_text().split("\n") if w and not w.startswith("#")]


def parse(block):
    return [tuple(t.split()) for t in block.strip().splitlines()]


class Grammar:
    """Writes haiku. Words of `unseen` are used nowhere; words of `held_out` are never asked for.

    `rare` are further words to ask for, counted by rule; with coined words they teach a model to copy instead of to recall.
    """

    def __init__(self, held_out=(), unseen=(), rare=()):
        self.known = syllables.table()
        lexicon = syllables.lexicon()
        held, unseen = set(held_out), set(unseen)
        self.bank = collections.defaultdict(dict)
        choose = random.Random(FILLER_SEED)
        for group, classes in templates.GROUPS.items():
            merged = collections.defaultdict(list)
            for c in classes:
                for n, words in lexicon[c].items():
                    merged[n] += [w for w in words if w not in unseen]
            # Few words fill the lines, so that their lengths are learnt well. The held-out ones, which are never asked for,
            # are all among them: nothing else could teach a model how long they are.
            for n, words in merged.items():
                common = [w for w in words if w not in held]
                kept = choose.sample(common, min(FILLERS, len(common))) + [w for w in words if w in held]
                if kept:
                    self.bank[group][n] = kept
        self.subject = {k: parse(v) for k, v in templates.SUBJECT.items()}
        self.opening, self.later, self.after = parse(templates.OPENING), parse(templates.LATER), parse(templates.AFTER)
        # Every word that can be asked for, with its class; the first class of a word wins.
        self.classes = {}
        for c in syllables.NOUNS:
            for words in lexicon[c].values():
                for w in words:
                    self.classes.setdefault(w, c)
        nouns = list(self.classes)
        for w in self.known:
            if len(w) > 2 and "'" not in w:
                self.classes.setdefault(w, "word")
        closed = self.closed = held | unseen
        self.nouns = [w for w in nouns if w not in closed]
        self.others = [w for w, c in self.classes.items() if c == "word" and w not in closed and self.known[w] <= 5]
        self.rare = [w for w in rare if w not in self.known and w not in closed and w.isalpha() and 3 <= len(w) <= 12]
        self.known |= {w: syllables.rule(w) for w in self.rare}
        self.rare = [w for w in self.rare if self.known[w] <= 4]
        self.short = [w for w in self.nouns if self.known[w] <= 2 and self.classes[w] != "plural"]

    def kinds(self, c):
        """The kinds of subject line that suit a class of words, repeated by how often they are wanted."""
        if c == "word":
            return ["word"]
        if c == "plural":
            return ["plural"]
        if c in ("animal", "person"):
            return ["noun"] * 3 + ["animate"] * 2 + ["solid"] * (c == "animal")
        return ["noun"] * 3 + (["solid"] if c in SOLID else ["mind"] * 2 if c in ("feeling", "craft") else ["noun"])

    @functools.lru_cache(maxsize=None)
    def splits(self, template, target, word_syllables, verb):
        """How the syllables of a line can be shared out among the slots of a template, with weights."""
        choices = []
        for item in template:
            if item == "{W}":
                choices.append([(word_syllables, 1.0)])
            elif item[0] == "{":
                slot = item.strip("{}?")
                counts = self.bank[verb if slot == "v" else slot]
                # Larger classes are drawn more often, but not in proportion: short lines would all be alike.
                opts = [(n, len(w) ** 0.5) for n, w in counts.items()]
                choices.append(([(0, 5.0)] if item[-2] == "?" else []) + opts)
            else:
                choices.append([(self.known[item.lower()] if item != "I" else 1, 1.0)])
        found, weights = [], []
        for combo in itertools.product(*choices):
            if sum(n for n, _ in combo) == target:
                weight = 1.0
                for _, x in combo:
                    weight *= x
                found.append(tuple(n for n, _ in combo))
                weights.append(weight)
        return found, list(itertools.accumulate(weights))

    def line(self, rng, pool, target, used, word=None, verb="vt", n=0):
        """One line of `target` syllables from a random template of the pool, or None after many failures."""
        for _ in range(60):
            template = rng.choice(pool)
            found, cumulative = self.splits(template, target, n, verb)
            if not found:
                continue
            shares = rng.choices(found, cum_weights=cumulative)[0]
            out, fresh = [], set()
            for item, share in zip(template, shares):
                if item == "{W}":
                    out.append(word)
                elif item[0] != "{":
                    out.append(item)
                elif share:
                    slot = item.strip("{}?")
                    slot = verb if slot == "v" else slot
                    pick = rng.choice(self.bank[slot][share])
                    if pick in used or pick in fresh or pick == word:
                        break
                    fresh.add(pick)
                    out.append(pick)
            else:
                content = [w for w in out if w not in FUNCTION]
                if len(set(content)) == len(content) and not used & set(content):
                    used.update(content)
                    for i, w in enumerate(out[:-1]):
                        if w in ("a", "an"):
                            out[i] = "an" if out[i + 1][0] in "aeiou" and not out[i + 1].startswith(("one", "uni")) else "a"
                    return " ".join(out)
        return None

    def poem(self, rng, word, n=None, c=None):
        """Three lines about a word of `n` syllables and class `c`."""
        n, c = n or self.known[word], c or self.classes.get(word, "word")
        verb = templates.VERBS.get(c, "vt")
        for _ in range(200):
            # In the first line or the second, so that it is never waited for; the longer, the likelier in the long line.
            at = rng.choices((0, 1), (7, 2 + n) if n <= 4 else (0, 1))[0]
            used, lines = set(), [None] * 3
            lines[at] = self.line(rng, self.subject[rng.choice(self.kinds(c))], SHAPE[at], used, word, verb, n)
            if lines[at] is None:
                continue
            for i in range(3):
                if i != at:
                    follows = i > at and rng.random() < (0.7 if i == at + 1 else 0.4)
                    lines[i] = self.line(rng, self.opening if i == 0 else self.after if follows else self.later, SHAPE[i], used)
            if None not in lines and len(set(lines)) == 3:
                return "\n".join(lines)
        raise ValueError(f"no poem found about {word}")

    def coin(self, rng):
        """A word that does not exist, and its syllables: two nouns in one, or syllables of consonant and vowel."""
        while True:
            if rng.random() < 0.65:
                a, b = rng.choice(self.short), rng.choice(self.short)
                word, n = a + b, self.known[a] + self.known[b]
            else:
                n = rng.choice((1, 2, 2, 3))
                word = "".join(rng.choice(ONSETS) + rng.choice("aeiou") + rng.choice(("", "n", "r", "l", "s", "m")) for _ in range(n)) + rng.choice(CODAS)
            if word not in self.known and word not in self.closed and len(word) <= 12:
                return word, n

    def sample(self, rng):
        """(word, poem, syllables) for training: nouns of the lexicon, or less often other, rare and coined words."""
        u = rng.random()
        if u < 0.12:
            word, n = self.coin(rng)
            return word, self.poem(rng, word, n, rng.choice(("thing", "animal", "place", "feeling"))), n
        word = rng.choice(self.rare if u < 0.25 and self.rare else self.others if u < 0.38 else self.nouns)
        return word, self.poem(rng, word), self.known[word]


def faults(text, word, known):
    """What is wrong with a haiku, as a list of short reasons; empty if it passes."""
    lines = text.strip("\n").split("\n")
    out = []
    if len(lines) != 3 or any(not line.strip() for line in lines):
        return ["lines"]
    if "\ufffd" in text:
        out.append("utf-8")
    if not re.search(rf"(?<![\w']){re.escape(word)}(?![\w'])", text, re.I):
        out.append("word")
    counts = tuple(syllables.line_syllables(line, known) for line in lines)
    if counts != SHAPE:
        out.append("syllables")
    if len({line.strip().lower() for line in lines}) < 3:
        out.append("line repeated")
    every = collections.Counter(w for w in re.findall(r"[a-z']+", text.lower()) if w not in FUNCTION)
    if every and max(every.values()) >= 3:
        out.append("word repeated")
    return out


def split(seed=20, held=200, unseen=60):
    """Draw the two closed lists from the nouns, in proportion to class and length."""
    rng = random.Random(seed)
    grammar = Grammar()
    lexicon = syllables.lexicon()
    literal = {i for t in list(grammar.subject.values()) + [grammar.opening, grammar.later, grammar.after] for x in t for i in x if i[0] != "{"}
    filler = {w for c, by in lexicon.items() if c not in syllables.NOUNS for ws in by.values() for w in ws}
    strata = collections.defaultdict(list)
    for w in grammar.nouns:
        if w not in literal and w not in filler:
            strata[min(4, grammar.known[w])].append(w)
    total = sum(map(len, strata.values()))
    lists = {"held_out.txt": [], "unseen.txt": []}
    for _, words in sorted(strata.items()):
        rng.shuffle(words)
        a, b = round(held * len(words) / total), round(unseen * len(words) / total)
        lists["held_out.txt"] += words[:a]
        lists["unseen.txt"] += words[a : a + b]
    for name, words in lists.items():
        (syllables.WORDS / name).write_text("\n".join(sorted(words)) + "\n")
        print(name, len(words))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--word")
    ap.add_argument("--count", type=int, default=5)
    ap.add_argument("--check", type=int, nargs="?", const=20000)
    ap.add_argument("--split", action="store_true")
    ap.add_argument("--seed", type=int, default=1)
    args = ap.parse_args()
    if args.split:
        return split()
    held, unseen = read_words("held_out.txt"), read_words("unseen.txt")
    grammar, rng = Grammar(held, unseen), random.Random(args.seed)
    if args.check:
        bad, seen, used = collections.Counter(), set(), set()
        for _ in range(args.check):
            word, text, n = grammar.sample(rng)
            for fault in faults(text, word, grammar.known | {word: n}):
                bad[fault] += 1
            seen.add(text)
            used |= set(text.split())
            assert word not in held and word not in unseen
        assert not used & set(unseen), "an unseen word was written"
        per = {n: sum(bool(grammar.splits(t, n, k, "vt")[0]) for t in itertools.chain(*grammar.subject.values(), grammar.opening, grammar.later, grammar.after)
                      for k in [2]) for n in (5, 7)}
        print(f"{args.check} haiku, {len(seen)} different, faults {dict(bad)}; templates that can fill 5 and 7 syllables: {per}")
        print(f"{len(grammar.nouns)} nouns and {len(grammar.others)} other words to ask for; {len(used)} words written")
        print(f"held out {len(held)}, of them written in other poems {len(used & set(held))}; unseen {len(unseen)}")
        return bool(bad)
    for _ in range(args.count):
        word, text = (args.word, grammar.poem(rng, args.word)) if args.word else grammar.sample(rng)[:2]
        print(f"[{word}]\n{text}\n")


if __name__ == "__main__":
    raise SystemExit(main())
