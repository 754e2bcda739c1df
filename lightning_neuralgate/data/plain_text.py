"""Ordinary questions without a picture: facts with one known answer, and prompts that ask for a sentence or two.

They are written by rule from lists. The facts of tests and those for training are disjoint, see `plain_questions`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from lightning_neuralgate.data.scenes.sprites import object_entries

HELD_OUT_FACTS = 200
"""Number of facts that are kept for tests."""


class PlainQuestion(NamedTuple):
    """A question with its answer; `answers` are wordings of it that count as right."""

    question: str
    answers: tuple[str, ...]


# each list: question with {}, then what is asked about: the answer, or several separated by a bar
_FACTS: dict[str, str] = {
    "What is the capital of {}?": (
        "France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Austria: Vienna; Greece: Athens; Poland: Warsaw; "
        "Hungary: Budapest; Sweden: Stockholm; Norway: Oslo; Denmark: Copenhagen; Finland: Helsinki; Ireland: Dublin; Russia: Moscow; "
        "Japan: Tokyo; China: Beijing; India: New Delhi|Delhi; Egypt: Cairo; Kenya: Nairobi; Cuba: Havana; Peru: Lima; Chile: Santiago; "
        "Argentina: Buenos Aires; Canada: Ottawa; Australia: Canberra; Thailand: Bangkok; Vietnam: Hanoi; Iraq: Baghdad; Iran: Tehran; "
        "Belgium: Brussels; Ukraine: Kyiv|Kiev; Romania: Bucharest; Bulgaria: Sofia; South Korea: Seoul; Indonesia: Jakarta; "
        "Mexico: Mexico City; Colombia: Bogotá|Bogota; Venezuela: Caracas; England: London; the United States: Washington; "
        "the Netherlands: Amsterdam; Turkey: Ankara; Scotland: Edinburgh; Nepal: Kathmandu; Afghanistan: Kabul"
    ),
    "What is the opposite of {}?": (
        "hot: cold; big: small|little; up: down; day: night; left: right; happy: sad|unhappy; fast: slow; old: young|new; good: bad|evil; "
        "light: dark|heavy; rich: poor; open: closed|close|shut; full: empty; hard: soft|easy; early: late; high: low; wet: dry; "
        "black: white; long: short; strong: weak; true: false; inside: outside; loud: quiet|soft; clean: dirty; near: far; "
        "begin: end|finish; love: hate; win: lose; buy: sell; push: pull; thick: thin; wide: narrow; north: south; east: west; "
        "first: last; deep: shallow; smooth: rough; sweet: bitter|sour; war: peace; success: failure"
    ),
    "Which animal says {}?": "meow: cat; moo: cow; woof: dog; oink: pig; quack: duck; baa: sheep; neigh: horse; ribbit: frog",
    "Which language do people speak in {}?": (
        "France: French; Germany: German; Italy: Italian; Spain: Spanish; Portugal: Portuguese; Russia: Russian; Japan: Japanese; "
        "Greece: Greek; Poland: Polish; Brazil: Portuguese; Mexico: Spanish; Sweden: Swedish; Hungary: Hungarian; China: Chinese|Mandarin; "
        "Austria: German; Finland: Finnish; Turkey: Turkish; Vietnam: Vietnamese; Thailand: Thai; England: English; Australia: English; "
        "Egypt: Arabic; Argentina: Spanish; Denmark: Danish; Norway: Norwegian"
    ),
    "On which continent is {}?": (
        "France: Europe; Germany: Europe; Egypt: Africa; Kenya: Africa; Japan: Asia; China: Asia; India: Asia; Brazil: South America; "
        "Peru: South America; Canada: North America; Mexico: North America; Nigeria: Africa; Spain: Europe; Thailand: Asia; "
        "Vietnam: Asia; Poland: Europe; Chile: South America; Morocco: Africa; Italy: Europe; Ethiopia: Africa; Sweden: Europe; Iran: Asia"
    ),
    "What is a young {} called?": (
        "dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; goat: kid; duck: duckling; lion: cub; bear: cub; chicken: chick; "
        "deer: fawn; frog: tadpole; pig: piglet; kangaroo: joey; swan: cygnet; goose: gosling"
    ),
    "What is the plural of {}?": (
        "child: children; mouse: mice; foot: feet; tooth: teeth; man: men; woman: women; goose: geese; leaf: leaves; knife: knives; "
        "city: cities; box: boxes; sheep: sheep; wolf: wolves; baby: babies; fish: fish|fishes; ox: oxen; person: people; bus: buses"
    ),
    "What is the past tense of {}?": (
        "go: went; eat: ate; see: saw; run: ran; write: wrote; take: took; give: gave; come: came; buy: bought; think: thought; "
        "know: knew; begin: began; drink: drank; swim: swam; sing: sang; break: broke; fly: flew; drive: drove; make: made; find: found; "
        "speak: spoke; teach: taught; catch: caught; sleep: slept; feel: felt; walk: walked; play: played"
    ),
    "What is the chemical symbol of {}?": (
        "hydrogen: H; oxygen: O; carbon: C; gold: Au; silver: Ag; iron: Fe; sodium: Na; helium: He; nitrogen: N; copper: Cu; lead: Pb; "
        "calcium: Ca; potassium: K; zinc: Zn; tin: Sn; neon: Ne"
    ),
    "Which day comes after {}?": (
        "Monday: Tuesday; Tuesday: Wednesday; Wednesday: Thursday; Thursday: Friday; Friday: Saturday; Saturday: Sunday; Sunday: Monday"
    ),
    "Which month comes after {}?": (
        "January: February; February: March; March: April; April: May; May: June; June: July; July: August; August: September; "
        "September: October; October: November; November: December; December: January"
    ),
    "Who wrote {}?": (
        "Romeo and Juliet: Shakespeare; Hamlet: Shakespeare; Don Quixote: Cervantes; Oliver Twist: Dickens; Pride and Prejudice: Austen; "
        "War and Peace: Tolstoy; The Odyssey: Homer; 1984: Orwell; The Hobbit: Tolkien; Moby-Dick: Melville; Frankenstein: Shelley; "
        "Dracula: Stoker; Faust: Goethe; Ulysses: Joyce; The Metamorphosis: Kafka; Les Misérables: Hugo; The Divine Comedy: Dante; "
        "Crime and Punishment: Dostoevsky|Dostoyevsky; Macbeth: Shakespeare; Animal Farm: Orwell; Jane Eyre: Brontë|Bronte"
    ),
    "What colour is {}?": (
        "grass: green; snow: white; blood: red; coal: black; a ripe banana: yellow; the clear sky: blue; a carrot: orange; milk: white; "
        "an emerald: green; a ruby: red; chocolate: brown; a lemon: yellow; a raven: black; a polar bear: white; a sunflower: yellow"
    ),
    "How many {}?": (
        "days are in a week: seven|7; months are in a year: twelve|12; hours are in a day: 24|twenty-four; legs does a spider have: eight|8; "
        "legs does a dog have: four|4; sides does a triangle have: three|3; minutes are in an hour: 60|sixty; seconds are in a minute: 60|sixty; "
        "letters are in the English alphabet: 26|twenty-six; continents are there: seven|7; legs does an insect have: six|6; "
        "years are in a century: 100|hundred; cents are in a dollar: 100|hundred; sides does a square have: four|4; "
        "wheels does a bicycle have: two|2; planets are in the solar system: eight|8; days are in a leap year: 366; "
        "centimetres are in a metre: 100|hundred; colours are in a rainbow: seven|7; strings does a violin have: four|4; players are in a football team: eleven|11; "
        "states are in the United States: 50|fifty; weeks are in a year: 52"
    ),
    "What do you call {}?": (
        "a person who flies a plane: pilot; a person who bakes bread: baker; a person who teaches: teacher; a doctor for teeth: dentist; "
        "a person who paints pictures: painter|artist; a person who writes books: author|writer; a person who grows crops: farmer; "
        "a place where books are lent: library; a place where planes land: airport|runway; a house for cars: garage; frozen water: ice; "
        "a scientist who studies stars: astronomer; a baby's bed: crib|cradle|cot; a person who cuts hair: barber|hairdresser|stylist; "
        "a person who cooks in a restaurant: chef|cook; the meal in the morning: breakfast; water that falls from clouds: rain"
    ),
    "Which {}?": (
        "planet is the largest in the solar system: Jupiter; planet is closest to the Sun: Mercury; planet is called the red planet: Mars; "
        "ocean is the largest: Pacific; animal is the largest on Earth: whale; animal is the tallest: giraffe; metal is liquid at room temperature: mercury; "
        "gas do plants take in: carbon dioxide|CO2; gas do we need to breathe: oxygen; organ pumps blood: heart; organ do we think with: brain; "
        "country has the Eiffel Tower: France; country has the pyramids of Giza: Egypt; country has the Great Wall: China; "
        "season comes after winter: spring; season comes after summer: autumn|fall; river flows through London: Thames; "
        "mountain is the highest on Earth: Everest; star is closest to Earth: Sun; bird cannot fly and lives in Antarctica: penguin; "
        "insect makes honey: bee; sense do we use our ears for: hearing|hear; continent is the largest: Asia; desert is the largest hot one: Sahara"
    ),
}  # fmt: skip
_SENTENCES = (
    "Write a sentence about {a}.", "What is {a} used for?", "Describe {a} in one sentence.", "What does {a} look like?",
    "Tell me something about {a}.", "Write a short poem about {a}.", "Give three words that go with {name}.", "Explain what {a} is.",
    "Why do people like {plural}?", "Where can I find {plural}?", "Write a question about {a}.", "What would a child say about {a}?",
)  # fmt: skip
_REQUESTS = (
    "Give me a tip for {}.", "How do I start with {}?", "What do I need for {}?", "Is {} difficult?", "Write a sentence about {}.",
    "Name one good thing about {}.", "Explain {} to a child.", "What is the first step in {}?", "Why is {} useful?",
)  # fmt: skip
_ACTIVITIES = (
    "cooking rice", "learning to swim", "growing tomatoes", "writing a letter", "painting a wall", "planning a trip", "baking bread",
    "riding a bicycle", "playing chess", "saving money", "cleaning windows", "learning a language", "sleeping well", "hiking",
    "taking photographs", "making coffee", "training a dog", "reading more books", "running a marathon", "sewing a button",
    "organizing a desk", "watering plants", "packing a suitcase", "singing in a choir", "writing a diary", "fishing", "building a kite",
    "using a spreadsheet", "giving a talk", "drawing a horse", "making soup", "knitting", "recycling paper", "learning the piano",
    "fixing a flat tyre", "keeping bees", "writing code", "stretching", "making friends", "studying for an exam",
)  # fmt: skip


def plain_questions(held_out: bool) -> list[PlainQuestion]:
    """Return the facts of tests or those for training; the checksum of its question decides which a fact is.

    >>> len(plain_questions(True)), len(set(plain_questions(True)) & set(plain_questions(False)))
    (200, 0)
    """
    facts = sorted(_facts(), key=lambda item: zlib.crc32(item.question.encode()))
    return facts[:HELD_OUT_FACTS] if held_out else facts[HELD_OUT_FACTS:]


def plain_prompts(seed: int = 0) -> list[str]:
    """Return ordinary prompts for training, some thousand, in random order: its facts in two wordings, sums, and requests."""
    rng = random.Random(f"plain/{seed}")
    prompts = [item.question for item in plain_questions(False)]
    prompts += [f"{prompt} Answer in one word." for prompt in prompts]
    for name, entry in object_entries().items():
        plural = entry.plural or f"{name}s"
        a = f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if " of " not in plural else name
        prompts += [template.format(a=a, name=name, plural=plural) for template in rng.sample(_SENTENCES, 10)]
    prompts += [template.format(activity) for activity in _ACTIVITIES for template in _REQUESTS]
    for _ in range(150):
        a, b = rng.randint(2, 20), rng.randint(2, 20)
        prompts.append(rng.choice((f"What is {a} plus {b}?", f"What is {a + b} minus {b}?", f"Is {a} larger than {b}?")))
    rng.shuffle(prompts)
    return prompts


def _facts() -> Iterator[PlainQuestion]:
    for template, facts in _FACTS.items():
        for fact in facts.split("; "):
            about, answers = fact.rsplit(": ", 1)
            yield PlainQuestion(template.format(about.strip()), tuple(answers.strip().split("|")))
