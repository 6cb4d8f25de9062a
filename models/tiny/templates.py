"""Line templates of the haiku grammar.

`{W}` is the word asked for, `{v}` a verb that suits it; other slots name a class of words/lexicon.txt or a group below;
`?` marks a slot that may stay empty. A template serves every length that its slots can fill, so most serve 5 and 7.
A line never starts with {W}: after a line break a word has other tokens than after a space.
"""
GROUPS = {
    "where": ["place", "land"], "item": ["thing", "tool"], "being": ["animal", "person"], "sky": ["sky"], "plant": ["plant"],
    "animal": ["animal"], "person": ["person"], "feel": ["feeling"], "food": ["food"], "stuff": ["stuff"], "body": ["body"],
    "craft": ["craft"], "pl": ["plural"], "adj": ["adj"], "badj": ["badj"], "ing": ["ing"], "prep": ["prep"], "adv": ["adv"], "season": ["season"],
    "color": ["color"], "va": ["va"], "vt": ["vt"], "vn": ["vn"], "vf": ["vf"], "land": ["land"], "place": ["place"], "time": ["time"],
}
VERBS = {c: "va" for c in ("animal", "person")} | {c: "vn" for c in ("sky", "time")} | {c: "vf" for c in ("feeling", "craft")}
# every other noun class takes "vt"

# Lines with the word asked for, by what kind of word it is.
SUBJECT = {
    # any singular noun
    "noun": """
the {adj?} {W} {v} {adv?}
the {adj} {W} {v} {prep} the {where}
the {W} {v} {prep} the {adj?} {where}
the {adj?} {W} {v} in the {sky}
the {W} {v} like {adj?} {stuff}
a {adj} {W} {v} {adv?}
a {adj} {W} {prep} the {where}
only the {adj?} {W} {v}
even the {adj?} {W} {v}
once more the {adj?} {W} {v}
still the {adj?} {W} {v}
and still the {adj?} {W} {v}
here the {W} {v} {adv?}
now the {adj?} {W} {v} {adv?}
all night the {adj?} {W} {v}
{ing} {prep} the {adj?} {W}
{ing} with the {adj?} {W}
{prep} the {adj?} {W}
{prep} the {adj?} {W} the {sky} {vn}
{adj} {sky} {prep} the {adj?} {W}
{adj?} {season} {sky} on the {W}
the {sky} {vn} {prep} the {W}
the {season} {sky} {vn} on the {W}
the {adj?} {W} and the {sky}
the {W} and the {adj?} {sky} {ing}
a song for the {adj?} {W}
a dream of the {adj?} {W}
the shadow of the {adj?} {W}
the scent of the {adj?} {W}
the silence of the {adj?} {W}
no sound from the {adj?} {W}
we speak of the {adj?} {W}
I remember the {adj?} {W}
my {adj?} {W} {v} {adv?}
my {adj?} {W} and the {sky}
our {adj?} {W} {v} {prep} the {where}
so quiet the {adj?} {W}
how {adj} the {adj?} {W}
how {adj} is the {adj?} {W} {adv?}
this {adj?} {W} {v} {adv?}
the {color} {W} {v} {adv?}
the {season} {W} {v} {adv?}
a {color} {W} {prep} the {sky}
the {person} knows the {adj?} {W}
the {person} dreams of the {W}
for the {adj?} {W} the {sky} {vn}
each {season} the {adj?} {W} {v}
who hears the {adj?} {W} {ing}
the {W} {ing} {prep} the {where}
the {adj} {W} {ing} {adv?}
nothing but the {adj?} {W}
there the {adj?} {W} {v} {adv?}
""",
    # animals and people
    "animate": """
the {badj?} {W} {va} and {va}
the {W} {va} at the {adj?} {sky}
a {badj} {W} looks at the {sky}
the {badj?} {W} hears the {sky}
the {badj?} {W} finds a {adj} {item}
the {W} {ing} by the {plant}
the {badj?} {W} keeps its secret
a {badj} {W} waits for the {season} {sky}
the breath of the {badj?} {W}
the eyes of the {badj?} {W}
hush now the {badj?} {W} {va}
one {badj?} {W} {va} {adv?}
the {W} turns to the {adj?} {sky}
the {badj?} {W} and the {plant}
one {badj} {W} {ing} in the {plant}
""",
    # things that can be touched
    "solid": """
the {adj?} {W} beside the {item}
{sky} on the {adj?} {W}
{adj?} {pl} around the {W}
the {animal} sees the {adj?} {W}
the {badj?} {animal} {va} by the {W}
the {person} {va} {prep} the {W}
the {person} left the {adj?} {W}
a {adj} {W} {vt} {prep} the {where}
the touch of the {adj?} {W}
the {pl} {prep} the {adj?} {W}
a {badj} {animal} {prep} the {W}
dust on the {adj?} {W}
""",
    # feelings, events and other things of the mind
    "mind": """
the word for {W} {vf} {adv?}
the {adj} sound of {W}
a {adj} kind of {W}
{adj} {W} {vf} {adv?}
the {sky} {vn} like {W}
the {person} sings of {W}
a {season} of {adj?} {W}
such {adj?} {W} {prep} the {sky}
and then {adj?} {W} {vf}
more {adj?} {W} than the {sky}
the {adj?} {sky} is full of {W}
what the {person} calls {W}
""",
    # plurals: nothing here has to agree with them
    "plural": """
the {adj?} {W} {prep} the {where}
the {adj?} {W} {ing} {adv?}
the {adj?} {W} {ing} {prep} the {where}
{adj} {W} {prep} the {adj?} {where}
{adj} {W} {ing} {adv?}
{adj?} {ing} {W} {prep} the {sky}
a handful of {adj?} {W}
the sound of {adj?} {W}
the {sky} {vn} {prep} the {adj?} {W}
{prep} the {adj?} {W}
{ing} {prep} the {adj?} {W}
so many {adj?} {W} {prep} the {where}
the {person} counts the {adj?} {W}
no more {adj?} {W} {adv?}
a dream of {adj?} {W}
two {adj?} {W} {prep} the {where}
all the {adj?} {W} {ing} {adv?}
I remember the {adj?} {W}
the {animal} {va} {prep} the {W}
the {adj?} {W} and the {adj?} {sky}
{season} {sky} on the {adj?} {W}
how {adj} the {adj?} {W}
""",
    # any word of the language: the poem speaks of it as a word
    "word": """
the {adj?} word {W} {vf}
someone whispers {W} {adv?}
the {person} whispers {W}
the {badj?} {person} says {W}
a {adj?} page that says {W}
the sound of {W} {prep} the {sky}
a whisper of {W} {adv?}
one word on the {item} {W}
written in {stuff} the word {W}
the {adj} letter says {W}
your letter says {W} {adv?}
the {sky} seems to say {W}
the echo of {W} {vf}
I say {W} to the {adj?} {sky}
the {pl} have a word {W}
and then the word {W} {adv?}
a song named {W} {adv?}
I whisper {W} {adv?}
we say {W} {adv?}
I say {W} {adv?}
the {badj?} {animal} hears {W}
the {item} with the word {W}
""",
}

# Lines without the word: openings, middles, ends.
SCENE = """
{adj} {season} {sky}
{adj} {season} {time}
the {adj} {sky} of {season}
the {adj} {sky} and the {adj} {sky}
{season} {sky} {prep} the {where}
{sky} {prep} the {adj?} {where}
{adj} {sky} {prep} the {adj?} {where}
the {adj?} {sky} {vn} {adv?}
the {adj} {sky} {vn} {prep} the {where}
a {badj} {animal} {va} {adv?}
the {badj?} {animal} {va} {prep} the {where}
one {badj?} {animal} {ing} {adv?}
{adj} {plant} {prep} the {where}
the {adj?} {plant} {vt} in the {sky}
{sky} on the {adj?} {plant}
the scent of {adj?} {plant} {adv?}
{prep} the {adj?} {where} the {sky} {vn}
{prep} the {adj?} {plant} the {animal} {va}
the {person} {va} {prep} the {where}
a {badj} {person} {va} {adv?}
a {badj} {person} {ing} {adv?}
the {adj?} {item} {prep} the {where}
a {adj} {item} {vt} {adv?}
{sky} on the {adj?} {item}
the smell of {food} and {adj?} {stuff}
{food} and {food} {prep} the {item}
a {adj} {item} of {stuff}
{adj?} {pl} {prep} the {adj?} {where}
{pl} {ing} {prep} the {where}
the {pl} {ing} {adv?}
{adj} {pl} {ing} {adv?}
no {feel} in the {adj?} {sky}
{feel} {vf} like the {sky}
{adj} {feel} {prep} the {sky}
all the {adj?} {feel} of {season}
my {adj?} {body} in the {sky}
the {adj?} {body} of the {animal}
{craft} and {craft} {prep} the {where}
the {time} {vn} {adv?}
the {adj?} {time} {vn} {prep} the {where}
nobody {ing} {prep} the {where}
the {adj?} {where} {vt} {adv?}
{color} {sky} {prep} the {adj?} {where}
the {color} {plant} {vt} {adv?}
the {adj?} {stuff} of the {item}
a {color} {animal} {prep} the {plant}
evening {prep} the {adj?} {where}
silence {prep} the {adj?} {where}
how {adj} the {adj?} {sky} {adv?}
"""

# Second or third lines which carry on from a line with the word.
AFTER = """
{ing} {prep} the {adj?} {where}
{ing} {prep} the {adj?} {sky}
{ing} and {ing} {adv?}
{ing} like the {adj?} {sky}
{ing} for the {adj?} {sky}
and the {adj?} {sky} {vn}
and the {adj?} {sky} {vn} {prep} the {where}
then the {adj?} {sky} {vn} {adv?}
while the {adj?} {sky} {vn} {adv?}
while the {badj?} {animal} {va}
as the {adj?} {sky} {vn} {prep} the {where}
until the {adj?} {sky} {vn} {adv?}
its {adj} shadow on the {where}
{prep} the {adj?} {sky} of {season}
{prep} the {adj?} {where} {adv?}
{adj} as the {season} {sky}
{adj} and {adj} in the {sky}
where the {adj?} {plant} {vt}
where the {badj?} {animal} {va}
with the {adj?} {sky} of {season}
before the {adj?} {sky} {vn}
after the {adj?} {sky} {adv?}
a {adj} {sky} {vn} {adv?}
nothing {prep} the {adj?} {sky}
so {adj} so {adj}
the {sky} {vn} the {sky} {vn}
and a {badj} {animal} {va}
and {adv} the {adj?} {sky}
in {adj?} {season} {sky}
and no one {prep} the {where}
"""
