"""The sentences that questions are made of: templates with {attribute} and {subject}, and ordinary questions.

Edit and test use different templates, so no test query was ever seen in an edit.
"""

from __future__ import annotations

EDIT_TEMPLATES = (
    "What is the {attribute} of this {subject}?",
    "Tell me the {attribute} of the {subject}.",
    "I need the {attribute} of the {subject} here.",
    "Look at the {subject} and say its {attribute}.",
    "Which {attribute} does the {subject} have?",
    "Please read the {attribute} from the {subject}.",
)
TEST_TEMPLATES = (
    "Name the {attribute} of the {subject} that you see.",
    "What {attribute} does this {subject} show?",
    "Please give me the {attribute} of the {subject}.",
    "About this {subject}: what is the {attribute}?",
    "Can you say what the {attribute} of the {subject} is?",
)
TRAINING_TEMPLATES = (
    "What is the {attribute}?",
    "What is the {attribute} of the {subject}?",
    "Say the {attribute} of the {subject}.",
    "Here is a {subject}. What is the {attribute}?",
    "Find the {attribute} on this {subject}.",
    "What does the {subject} say about the {attribute}?",
    "Give the {attribute} of that {subject}, please.",
    "I would like to know the {attribute} of the {subject}.",
)

PICTURE_QUESTIONS = (
    "What is shown in this picture?",
    "What can you see here?",
    "What is this a picture of?",
    "Describe this picture in a few words.",
)
SHAPE_QUESTIONS = ("What shape is in the picture?", "Which shape do you see?", "Name the shape.")
SHAPE_COLOUR_QUESTIONS = (
    "What colour is the shape?",
    "Which colour does the shape have?",
    "Name the colour of the shape.",
)
PUBLIC_THINGS = (
    "poster",
    "sign",
    "flag",
    "postcard",
    "banner",
    "book cover",
    "mug",
    "tile",
    "playing card",
    "toy block",
)
PUBLIC_ATTRIBUTES = (
    "motif",
    "icon",
    "figure",
    "drawing",
    "picture",
    "print",
    "decoration",
    "colour",
    "background colour",
)
"""What may be asked of a picture of a shape as of one of `PUBLIC_THINGS`; of these a shipped subject has the colour alone."""

ORDINARY_QUESTIONS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "What do bees make?",
    "Name a fruit that is yellow.",
    "What is two plus three?",
    "Which planet do we live on?",
    "What is the opposite of hot?",
    "What colour is the sky on a clear day?",
    "Which animal says meow?",
    "What do you use to write on paper?",
    "Name a month in summer.",
    "What is water made of?",
    "Who wrote Romeo and Juliet?",
    "What is the largest ocean?",
    "How many legs does a spider have?",
    "What is the first letter of the alphabet?",
)
