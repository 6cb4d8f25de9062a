#!/usr/bin/env python3
"""Syllables: the hand-counted lexicon, a rule for other words, and the table words/syllables.tsv.

    python syllables.py --check              compare the rule with every count made by hand
    python syllables.py --build --texts DIR  write words/syllables.tsv (lexicon + common words of DIR/train)
"""
import argparse
import collections
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
WORDS = HERE / "words"
NOUNS = ("animal plant sky land place thing tool food person body feeling time stuff craft plural").split()

# Words of the books for which the rule is wrong, counted by hand.
EXCEPTIONS = {}
for _line in (WORDS / "exceptions.txt").read_text().splitlines():
    if _line and not _line.startswith("#"):
        _n, *_words = _line.split()
        EXCEPTIONS.update({w: int(_n) for w in _words})

# Words of abuse that the books of their time use and the haiku leave out.
ABUSE = re.compile(r"n[ei]g[gr]")

# Patterns in which neighbouring vowels belong to two syllables, and patterns which are silent.
SPLIT = re.compile(
    r"ia(?!g[en]|r?d$)|io(?!n|us)|(?<![cstgxh])io(?=n|us)|iu|eo(?!u|n$|ns$)|(?<![qg])ua|(?<![qg])uo|ie(?=t)|ue(?=[lt]$)|oe(?=t)|"
    r"[aeiou]ing|yi|ya(?=l)|(?<=[aeiou])i(?=[aeo]r$)|ea(?=t(e|ion|or))|(?<=e)i(?=ty)|(?<=cr)ea(?=t)|[st]m$|thms?$|sms?$"
)
HUSHED = re.compile(r"(?<=[cst])ia(?=l|n)|(?<=[lr])ia(?=ge)|(?<=[ct])io(?=us)|(?<=c)reature|(?<=gu)a")


def rule(word):
    """Syllables of `word` by spelling alone; good for about nineteen of twenty common words."""
    w = re.sub(r"[^a-z']", "", word.lower())
    extra = 0
    if w.endswith("n't") and w not in ("don't", "won't", "can't", "aren't", "weren't"):
        extra, w = 1, w[:-3]
    w = re.sub(r"'(s|re|ve|ll|d|m|t)?$", "", w).replace("'", "")
    if not w:
        return max(1, extra)
    # A silent e before a suffix or at the joint of a compound.
    w = re.sub(r"(?<=[aeiouy][bcdfgklmnprstvz])e(?=(ly|less|ful|fully|ness|ment|ments|some|man|men|time|times|thing|where|body|one)$)", "", w)
    # Silent endings: -e, -es, -ed.
    if re.search(r"[^aeiouy]les?$", w) and not re.search(r"[aeiouyr]les?$", w):
        w = re.sub(r"les?$", "el", w)
    elif re.search(r"[^td]ed$", w) and re.search(r"[aeiouy].*ed$", w) and not re.search(r"[^aeiouyr]led$", w):
        w = w[:-2]
    elif re.search(r"es$", w) and re.search(r"[aeiouy].*es$", w) and not re.search(r"([sxzcg]|ch|sh)es$", w):
        w = w[:-2] + ("i" if w.endswith("ies") else "")
        w = w if re.search(r"[aeiouy]", w) else w + "e"
    elif w.endswith("e") and re.search(r"[aeiouy].*[^aeiouy]e$", w):
        w = w[:-1]
    groups = len(re.findall(r"[aeiouy]+", re.sub(r"^y(?=[aeiou])|(?<=[aeiou])y(?=[aeo])", "", w)))
    groups += len(re.findall(r"(?<=[aeiou])y(?=[aeo])", w))
    groups += len(SPLIT.findall(w)) - len(HUSHED.findall(w))
    return max(1, groups) + extra


def lexicon():
    """{class: {syllables: [words]}} from words/lexicon.txt."""
    out, cur = collections.defaultdict(dict), None
    for line in (WORDS / "lexicon.txt").read_text().splitlines():
        if line.startswith("@"):
            name, n = line[1:].split()
            cur = out[name].setdefault(int(n), [])
        elif line and not line.startswith("#"):
            cur.extend(line.split())
    return out


def lexicon_counts():
    """{word: syllables}; a word that two classes count differently is an error."""
    out = {}
    for name, by_count in lexicon().items():
        for n, words in by_count.items():
            for w in words:
                if out.setdefault(w, n) != n:
                    raise SystemExit(f"{w}: counted as {out[w]} and as {n} (class {name})")
    return out


def table():
    """{word: syllables} as committed in words/syllables.tsv."""
    rows = (WORDS / "syllables.tsv").read_text().splitlines()
    return {w: int(n) for w, n in (r.split("\t") for r in rows if not r.startswith("#"))}


def count(word, known):
    w = word.lower().strip("'")
    if w in known:
        return known[w]
    if w.endswith("'s") and w[:-2] in known:
        return known[w[:-2]] + (1 if re.search(r"([sxz]|ch|sh|ce|ge|se|ze)$", w[:-2]) else 0)
    return rule(w)


def line_syllables(line, known):
    return sum(count(w, known) for w in re.findall(r"[A-Za-z']+", line) if w.strip("'"))


def common_words(texts, least):
    """Words that stand in lower case at least `least` times, and in lower case more often than not."""
    lower, every = collections.Counter(), collections.Counter()
    for path in sorted(pathlib.Path(texts, "train").glob("*.txt")):
        for w in re.findall(r"[A-Za-z]+(?:'[a-z]+)?", path.read_text()):
            every[w.lower()] += 1
            lower[w] += w.islower()
    return [w for w, n in lower.most_common() if n >= least and 2 * n > every[w] and not ABUSE.match(w)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--check", action="store_true")
    ap.add_argument("--build", action="store_true")
    ap.add_argument("--texts")
    ap.add_argument("--least", type=int, default=25, help="how often a word must stand in the texts")
    args = ap.parse_args()
    hand = lexicon_counts()
    if args.check:
        wrong = sorted((w, n, rule(w)) for w, n in hand.items() if rule(w) != n)
        print(f"{len(hand)} words counted by hand; the rule agrees on {len(hand) - len(wrong)}")
        print(" ".join(f"{w}:{n}/{r}" for w, n, r in wrong))
    if args.build:
        known = dict(hand)
        for w in common_words(args.texts, args.least):
            if w not in known and len(w) > 1 and EXCEPTIONS.get(w) != 0:
                known[w] = EXCEPTIONS.get(w, rule(w))
        with open(WORDS / "syllables.tsv", "w") as f:
            f.writelines(f"{w}\t{n}\n" for w, n in sorted(known.items()))
        print(f"{len(known)} words")


if __name__ == "__main__":
    main()
