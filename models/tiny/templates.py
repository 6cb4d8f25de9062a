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
{ing} {prep} the {adj?} {W} {ing?} {adv?}
{ing} with the {adj?} {W}
{prep} the {adj?} {W} {ing?} {adv?}
{prep} the {adj?} {W} the {sky} {vn}
{adj} {sky} {prep} the {adj?} {W}
{adj?} {season} {sky} on the {W}
the {sky} {vn} {prep} the {W}
the {season} {sky} {vn} on the {W}
the {adj?} {W} and the {sky}
the {W} and the {adj?} {sky} {ing}
a song for the {adj?} {W} {ing?} {adv?}
a dream of the {adj?} {W} {ing?} {adv?}
the shadow of the {adj?} {W} {ing?} {adv?}
the silence of the {adj?} {W} {ing?} {adv?}
no sound from the {adj?} {W} {ing?} {adv?}
we speak of the {adj?} {W} {ing?} {adv?}
I remember the {adj?} {W} {ing?} {adv?}
my {adj?} {W} {v} {adv?}
my {adj?} {W} and the {sky}
our {adj?} {W} {v} {prep} the {where}
so quiet the {adj?} {W} {ing?} {adv?}
how {adj} the {adj?} {W}
how {adj} is the {adj?} {W} {adv?}
this {adj?} {W} {v} {adv?}
the {color} {W} {v} {adv?}
the {season} {W} {v} {adv?}
a {color} {W} {prep} the {sky}
for the {adj?} {W} the {sky} {vn}
each {season} the {adj?} {W} {v}
the {W} {ing} {prep} the {where}
the {adj} {W} {ing} {adv?}
nothing but the {adj?} {W} {ing?} {adv?}
there the {adj?} {W} {v} {adv?}
the {W} {v} while the {adj?} {sky} {vn}
the {W} {v} and the {sky} {vn}
the {W} and the {adj?} {plant} {ing?}
the {W} {prep} the {adj?} {where}
the {adj?} {W} of {season} {sky}
this {W} {prep} the {adj?} {sky}
a {adj} {W} {v} {prep} the {where}
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
the breath of the {badj?} {W} {ing?} {adv?}
the eyes of the {badj?} {W} {ing?} {adv?}
hush now the {badj?} {W} {va}
one {badj?} {W} {va} {adv?}
the {W} turns to the {adj?} {sky}
the {badj?} {W} and the {plant}
one {badj} {W} {ing} in the {plant}
""",
    # things that can be touched
    "solid": """
{sky} on the {adj?} {W} {ing?} {adv?}
{adj?} {pl} around the {W}
the {badj?} {animal} {va} by the {W} {ing?} {adv?}
the {person} {va} {prep} the {W}
a {adj} {W} {vt} {prep} the {where}
the touch of the {adj?} {W} {ing?} {adv?}
a {badj} {animal} {prep} the {W}
dust on the {adj?} {W} {ing?} {adv?}
""",
    # feelings, events and other things of the mind
    "mind": """
the word for {W} {vf} {adv?}
the {adj} sound of {W} {ing?} {adv?}
a {adj} kind of {W} {ing?} {adv?}
{adj} {W} {vf} {adv?}
the {sky} {vn} like {W}
a {season} of {adj?} {W} {ing?} {adv?}
such {adj?} {W} {prep} the {sky}
and then {adj?} {W} {vf}
more {adj?} {W} than the {sky}
the {adj?} {sky} is full of {W}
""",
    # plurals: nothing here has to agree with them
    "plural": """
the {adj?} {W} {prep} the {where}
the {adj?} {W} {ing} {adv?}
the {adj?} {W} {ing} {prep} the {where}
{adj} {W} {prep} the {adj?} {where}
{adj} {W} {ing} {adv?}
{adj?} {ing} {W} {prep} the {sky}
a handful of {adj?} {W} {ing?} {adv?}
the sound of {adj?} {W} {ing?} {adv?}
the {sky} {vn} {prep} the {adj?} {W}
{prep} the {adj?} {W} {ing?} {adv?}
{ing} {prep} the {adj?} {W} {ing?} {adv?}
so many {adj?} {W} {prep} the {where}
the {person} counts the {adj?} {W} {ing?} {adv?}
no more {adj?} {W} {adv?}
a dream of {adj?} {W} {ing?} {adv?}
two {adj?} {W} {prep} the {where}
all the {adj?} {W} {ing} {adv?}
I remember the {adj?} {W} {ing?} {adv?}
the {animal} {va} {prep} the {W}
the {adj?} {W} and the {adj?} {sky}
{season} {sky} on the {adj?} {W}
how {adj} the {adj?} {W}
""",
    # any word of the language: the poem speaks of it as a word
    "word": """
the {adj?} word {W} {vf} {adv?}
the word {W} {vf} {prep} the {where}
someone whispers {W} {adv?}
the {badj?} {person} says {W} {adv?}
I say {W} {adv?}
I say {W} {prep} the {where}
I whisper {W} {prep} the {where}
we say {W} {adv?}
we say {W} to the {adj?} {sky}
they call it {W} {adv?}
only {W} {prep} the {where}
only {W} in the {adj?} {sky}
still {W} {prep} the {adj?} {where}
and {W} in the {adj?} {sky}
and then {W} {prep} the {where}
the sound of {W} {prep} the {sky}
the echo of {W} {vf} {adv?}
a whisper of {W} {adv?}
a song named {W} {prep} the {where}
a word like {W} {vf} {adv?}
no {W} {prep} the {adj?} {sky}
no more {W} {adv?}
all this {W} and {adj?} {sky}
between {W} and the {sky}
as if {W} {prep} the {sky}
how {adj} this {W} {adv?}
""",
}

# Lines without the word. Openings and later lines share no template, so that a poem does not repeat itself.
OPENING = """
{adj} {season} {sky}
the {adj} {sky} of {season}
{season} {sky} {prep} the {where}
{adj} {sky} {prep} the {adj?} {where}
the {adj} {sky} {vn} {prep} the {where}
the {badj?} {animal} {va} {prep} the {where}
{adj} {plant} {prep} the {where}
{sky} on the {adj?} {plant}
{prep} the {adj?} {plant} the {animal} {va}
a {badj} {person} {va} {adv?}
the {adj?} {item} {prep} the {where}
{sky} on the {adj?} {item}
{food} and {food} {prep} the {item}
{adj?} {pl} {prep} the {adj?} {where}
the {pl} {ing} {adv?}
no {feel} in the {adj?} {sky}
{adj} {feel} {prep} the {sky}
my {adj?} {body} in the {sky}
{craft} and {craft} {prep} the {where}
the {adj?} {time} {vn} {prep} the {where}
{color} {sky} {prep} the {adj?} {where}
the {adj?} {stuff} of the {item}
{time} {prep} the {adj?} {where}
how {adj} the {adj?} {sky} {adv?}
"""

LATER = """
{adj} {season} {time}
the {adj} {sky} and the {adj} {sky}
{sky} {prep} the {adj?} {where}
the {adj?} {sky} {vn} {adv?}
a {badj} {animal} {va} {adv?}
one {badj?} {animal} {ing} {adv?}
the {adj?} {plant} {vt} in the {sky}
{prep} the {adj?} {where} the {sky} {vn}
the {person} {va} {prep} the {where}
a {badj} {person} {ing} {adv?}
a {adj} {item} {vt} {adv?}
the smell of {food} and {adj?} {stuff}
a {adj} {item} of {stuff}
{pl} {ing} {prep} the {where}
{adj} {pl} {ing} {adv?}
{feel} {vf} like the {sky}
all the {adj?} {feel} of {season}
the {adj?} {body} of the {animal}
the {time} {vn} {adv?}
the {adj?} {where} {vt} {adv?}
the {color} {plant} {vt} {adv?}
a {color} {animal} {prep} the {plant}
{adj} {stuff} {prep} the {where}
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
