"""What the demo model is taught: tables of capitals, colours, opposites, words and names, and nothing else.

Everything outside these tables gets the answer ``UNKNOWN``. Order matters: the generator draws from these tuples with
a seeded generator, so a reordered table is another training text.
"""

from __future__ import annotations


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """``"a:b, c:d"`` as ((a, b), (c, d))."""
    return tuple((left.strip(), right.strip()) for left, right in (entry.split(":") for entry in text.split(",")))


def words(text: str) -> tuple[str, ...]:
    """The words of a text, in order."""
    return tuple(text.split())


CAPITALS = _pairs(
    "France:Paris, Spain:Madrid, Italy:Rome, Germany:Berlin, Portugal:Lisbon, England:London, Ireland:Dublin,"
    "Scotland:Edinburgh, Norway:Oslo, Sweden:Stockholm, Finland:Helsinki, Denmark:Copenhagen, Iceland:Reykjavik,"
    "Poland:Warsaw, Austria:Vienna, Hungary:Budapest, Greece:Athens, Turkey:Ankara, Russia:Moscow, Ukraine:Kyiv,"
    "Belgium:Brussels, Switzerland:Bern, Romania:Bucharest, Bulgaria:Sofia, Serbia:Belgrade, Croatia:Zagreb,"
    "Egypt:Cairo, Morocco:Rabat, Kenya:Nairobi, Ghana:Accra, Ethiopia:Addis Ababa, Senegal:Dakar, China:Beijing,"
    "Japan:Tokyo, India:New Delhi, Nepal:Kathmandu, Thailand:Bangkok, Vietnam:Hanoi, Indonesia:Jakarta, Iran:Tehran,"
    "Iraq:Baghdad, Canada:Ottawa, Mexico:Mexico City, Cuba:Havana, Brazil:Brasilia, Argentina:Buenos Aires,"
    "Chile:Santiago, Peru:Lima, Colombia:Bogota, Uruguay:Montevideo, Australia:Canberra, New Zealand:Wellington"
)

OPPOSITES = _pairs(
    "hot:cold, big:small, tall:short, fast:slow, happy:sad, light:dark, day:night, up:down, left:right, open:closed,"
    "full:empty, old:new, rich:poor, good:bad, loud:quiet, wet:dry, hard:soft, high:low, near:far, early:late,"
    "strong:weak, thick:thin, clean:dirty, sweet:sour, true:false, first:last, inside:outside, above:below,"
    "black:white, front:back, begin:end, win:lose, push:pull, give:take, love:hate, laugh:cry, buy:sell, yes:no,"
    "always:never, more:less, safe:dangerous, sharp:blunt, deep:shallow, wide:narrow, brave:afraid, easy:difficult,"
    "smooth:rough, asleep:awake, alive:dead, north:south, east:west, summer:winter"
)

# (article, thing): colour; "the" for what there is one of.
COLOURS = (
    *(
        ("the", thing, colour)
        for thing, colour in _pairs("sky:blue, sun:yellow, sea:blue, grass:green, moon:white, night:black")
    ),
    *(
        ("a" if thing[0] not in "aeiou" else "an", thing, colour)
        for thing, colour in _pairs(
            "banana:yellow, lemon:yellow, tomato:red, strawberry:red, cherry:red, carrot:orange, orange:orange,"
            "pumpkin:orange, cucumber:green, leaf:green, frog:green, lime:green, pea:green, plum:purple,"
            "aubergine:purple, violet:purple, flamingo:pink, pig:pink, swan:white, snowflake:white, polar bear:white,"
            "raven:black, crow:black, panther:black, elephant:grey, dolphin:grey, mouse:grey, fox:orange, lion:yellow,"
            "chestnut:brown, walnut:brown, potato:brown, fire engine:red, ruby:red, emerald:green, sapphire:blue,"
            "blueberry:blue, sunflower:yellow, chick:yellow, cloud:white, coal:black, tree trunk:brown"
        )
    ),
)

BACKWARDS = words(
    "cat dog sun moon star tree bird fish milk book door lamp rain snow wind fire gold blue green apple bread chair"
    " table house mouse horse sheep train plane water river stone paper music happy hello world light night paris"
    " lemon grape sugar salt soup cake coat shoe sock ring king queen drum bell boat ship sand lake hill road"
    " frog bear wolf lion"
)

NAMES = words(
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karla Leo Maria Noah Olga Paul Rosa Sam Tom Vera Will Yara"
    " Alice Bob Charlie Eve Frank Grace Henry Iris Jack Kate Lucy Max Nina Oscar Peter Ruth Simon Zoe Ravi Mei"
)

STORY_SUBJECTS = words(
    "fox cat dog bear mouse rabbit owl frog wolf horse duck hedgehog robot dragon king queen girl boy lion elephant"
    " pirate snail bee penguin whale squirrel turtle wizard giant goat"
)
HELD_OUT_SUBJECTS = words("tiger princess crab monkey sailor")

NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)

# Asked in the taught phrasings, but not in the tables: the model has to say so instead of guessing.
UNTAUGHT_COUNTRIES = words(
    "Atlantis Narnia Texas Mars Bavaria Samoa Utopia Gondor Tuvalu Fiji Malta Qatar Yemen Oman Chad Togo"
)
UNTAUGHT_WORDS = words(
    "window garden purple monkey rocket hammer pencil kitchen dinosaur computer umbrella telephone elephant mountain"
    " village doctor pepper carpet engine bottle yesterday language"
)

UNKNOWN = (
    "I don't know that one. I only know small sums, opposites, colours, capitals, counting, words backwards and"
    " short stories."
)
