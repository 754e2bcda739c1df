"""Wordings of the questions about scenes and documents. The wordings of the benchmarks are not among them."""

from __future__ import annotations

YES_NO = ("", "", " Yes or no?", " Say yes or no.", " Reply with yes or no.", " Only yes or no, please.", " (yes/no)")
IS_THERE = (
    "Is there {thing} here?", "Do you see {thing} in this picture?", "Can {thing} be seen?", "Does the picture show {thing}?",
    "Is {thing} part of this scene?", "Do you notice {thing}?", "Does this photo contain {thing}?",
    "Any sign of {thing} here?",
    "Is there {thing} in this picture?",
)  # fmt: skip
HOW_MANY = (
    "How many {plural} are there?", "How many {plural} do you see?", "Count the {plural}.", "What is the number of {plural}?",
    "How many {plural} does the picture show?",
)  # fmt: skip
ARE_THERE = (
    "Are there {count} {plural} here?", "Do you see {count} {plural}?", "Does the picture show {count} {plural}?",
    "Is the number of {plural} {count}?",
)  # fmt: skip
WHERE = ("Where is the {thing}?", "In which part of the picture is the {thing}?", "Where do you see the {thing}?")
SIDE = (
    "Is the {thing} {side}?", "Do you see the {thing} {side}?", "Is the {thing} placed {side}?",
)  # fmt: skip
RELATION = (
    "Is the {thing} {relation} the {other}?", "Do you find the {thing} {relation} the {other}?",
    "Would you say that the {thing} is {relation} the {other}?", "In the picture, is the {thing} {relation} the {other}?",
)  # fmt: skip
RELATIONS = {
    "left": ("to the left of", "left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "higher than", "over"),
    "below": ("below", "lower than", "under"),
}
COLOUR = (
    "What colour is the {thing}?", "Which colour does the {thing} have?", "What is the colour of the {thing}?",
    "Say the colour of the {thing}.", "The {thing} is of which colour?",
)  # fmt: skip
IS_COLOUR = (
    "Is the {thing} {colour}?", "Is the colour of the {thing} {colour}?", "Does the {thing} look {colour}?",
    "Is this {thing} {colour}?", "Would you call the {thing} {colour}?",
)  # fmt: skip
READ = (
    "What {phrase} does the {thing} have?", "What is the {phrase} on the {thing}?", "Read the {phrase} of the {thing}.",
    "Which {phrase} is written on the {thing}?", "What does the {thing} say as its {phrase}?",
    "Tell me the {phrase} on this {thing}.",
)  # fmt: skip
SAYS = (
    'Is the {phrase} of the {thing} {value}?', 'Does the {thing} show the {phrase} {value}?',
    'Does it say {value} on the {thing}?',
    'Is {value} the {phrase} on this {thing}?', 'Is "{value}" written on the {thing}?',
)  # fmt: skip
CAPTION = (
    "What is in this picture?", "Describe the scene.", "Give a short caption.", "What do you see?",
    "Tell me what the picture shows.",
    "Write one sentence about this picture.", "Caption this.",
)  # fmt: skip
LISTING = (
    "List all things with colour and place, and what is written on them.",
    "Name each thing here, its colour and its side, from left to right.",
)
READ_ALL = ("Read out the whole {thing}.", "Say all that the {thing} shows, line by line.")
WHICH_SHOWN = ("Which of these is in the picture?", "Which one do you see here?", "Which of the following appears?")
WHICH_COLOUR = (
    "Which colour is the {thing}?",
    "What is the right colour of the {thing}?",
    "Pick the colour of the {thing}.",
)
WHICH_COUNT = ("How many {plural} are in the picture?", "Which number of {plural} is right?")
WHICH_READ = (
    "Which {phrase} is on the {thing}?",
    "What is the {thing}'s {phrase}?",
    "Pick the {phrase} of the {thing}.",
)
WHICH_CATEGORY = (
    "What kind of thing is the {thing}?",
    "The {thing} is which of these?",
    "What sort of thing is shown as the {thing}?",
)
WHICH_SIDE = (
    "Which thing is farthest {side}?",
    "What is the thing most {side}?",
    "Which of these is the most {side}?",
)
BY_LETTER = (
    "Reply with one letter.", "Give the letter of your choice.", "Which letter is right?", "Letter only, please.",
    "Choose A, B and so on.",
)  # fmt: skip
BY_WORD = ("Answer with the word.", "Say the right word.", "Pick one of them.")
WHICH_LARGEST = ("Which thing is the largest?", "What is the biggest thing here?", "Which one looks largest?")
WHICH_SMALLEST = ("Which thing is the smallest?", "What is the smallest thing here?", "Which one looks smallest?")
IS_ONE = ("Is there just one {thing}?", "Do you see exactly one {thing}?", "Is there a single {thing} here?")
IS_KIND = ("Is the {thing} {kind}?", "Would you call the {thing} {kind}?", "Does the {thing} count as {kind}?")
IS_KIND_ALONE = ("Is this {kind}?", "Is the shown thing {kind}?", "Does the picture show {kind}?")
FORM = (
    "How many characters does the {phrase} have?", "How long is the {phrase} of this {thing}, in characters?",
    "Count the characters of the {phrase}.",
)  # fmt: skip
KIND = (
    "What kind of thing is this?",
    "What sort of document is it?",
    "Which object does the picture show?",
    "What is this?",
)
