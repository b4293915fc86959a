"""The ways in which each family of questions is asked: those that are trained, and those that are held out.

``{n}`` in a frame takes a noun phrase of the family ("the capital of {x}"); a family also has whole questions of its
own. No held-out frame, question or remark is ever in the training text.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAMES = (
    "What is {n}?", "What's {n}?", "Tell me {n}.", "Can you tell me {n}?", "Do you know {n}?", "{n}?",
    "Please tell me {n}.", "Could you tell me {n}?", "I want to know {n}.", "Say {n}.", "Give me {n}.",
    "What would {n} be?", "Hey, what is {n}?", "Hello, what is {n}?", "So what is {n}?", "Now tell me {n}.",
    "What is {n}, please?", "Let me know {n}.", "I wonder what {n} is.", "And what is {n}?", "Could you say {n}?",
    "Would you please tell me {n}?", "I'd like to know {n}.", "What might {n} be?", "Tell me what {n} is.",
    "Do you know what {n} is?", "Ok, what is {n}?", "Next question: what is {n}?",
)  # fmt: skip
HELD_OUT_FRAMES = (
    "Would you tell me {n}?", "Do you happen to know {n}?", "I would like to know {n}.", "Please say what {n} is.",
    "Can you say {n}?", "Well, what is {n}?", "Can you tell me what {n} is?", "Now, what is {n}?",
)  # fmt: skip

# After an answer, the same question about something else.
FOLLOW_UPS = (
    "And {x}?", "What about {x}?", "How about {x}?", "Then {x}?", "Ok, and {x}?", "Thanks, and {x}?", "Now {x}.",
    "and for {x}?", "Also {x}?",
)  # fmt: skip
HELD_OUT_FOLLOW_UPS = ("And what about {x}?", "Ok, what about {x}?", "And how about {x}?")


@dataclass(frozen=True, slots=True)
class Phrasings:
    """One family's noun phrases (put into frames) and whole questions."""

    nouns: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]

    def all(self, held_out: bool) -> tuple[str, ...]:
        """Every trained phrasing, or every held-out one; templates with the family's own fields."""
        frames = HELD_OUT_FRAMES if held_out else FRAMES
        return (*(frame.replace("{n}", noun) for noun in self.nouns for frame in frames), *self.whole(held_out))

    def whole(self, held_out: bool) -> tuple[str, ...]:
        """The whole questions alone."""
        return self.held_out if held_out else self.questions


SUM = Phrasings(
    nouns=("{a} plus {b}", "{a} + {b}", "{a}+{b}", "the sum of {a} and {b}"),
    questions=(
        "How much is {a} plus {b}?", "How much is {a} + {b}?", "Add {a} and {b}.", "Add {a} to {b}.", "{a}+{b}=",
        "{a} + {b} = ?", "{a} + {b} =", "Calculate {a} plus {b}.", "Work out {a} + {b}.", "{a} plus {b} equals what?",
        "What do you get if you add {a} and {b}?", "What does {a} plus {b} make?", "What does {a} plus {b} equal?",
        "What do {a} and {b} make together?", "Can you add {a} and {b}?", "Compute {a}+{b}.", "{a} plus {b} is?",
        "I have {a} apples and get {b} more. How many do I have?", "If I add {a} and {b}, what do I get?",
        "How much are {a} and {b}?", "Can you work out {a} + {b}?",
    ),
    held_out=(
        "How much are {a} and {b} together?", "What does {a} + {b} equal?", "If you add {a} and {b}, what do you get?",
        "Please add {a} and {b}.", "Can you work out {a} plus {b}?", "Calculate {a} + {b}.",
    ),
)  # fmt: skip

DIFFERENCE = Phrasings(
    nouns=("{a} minus {b}", "{a} - {b}", "{a}-{b}", "{a} take away {b}"),
    questions=(
        "How much is {a} minus {b}?", "How much is {a} - {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.",
        "{a}-{b}=", "{a} - {b} = ?", "{a} - {b} =", "Calculate {a} minus {b}.", "Work out {a} - {b}.",
        "{a} minus {b} equals what?", "What do you get if you subtract {b} from {a}?", "What does {a} minus {b} make?",
        "What does {a} minus {b} equal?", "Can you subtract {b} from {a}?", "Compute {a}-{b}.", "{a} minus {b} is?",
        "I have {a} apples and eat {b}. How many are left?", "If I take {b} away from {a}, what is left?",
        "Can you work out {a} - {b}?", "What is left if I take {b} from {a}?",
    ),
    held_out=(
        "What do you get if you take {b} from {a}?", "What does {a} - {b} equal?", "Please subtract {b} from {a}.",
        "If you take {b} away from {a}, what is left?", "Can you work out {a} minus {b}?", "Calculate {a} - {b}.",
    ),
)  # fmt: skip

CAPITAL = Phrasings(
    nouns=("the capital of {x}", "the capital city of {x}", "{x}'s capital"),
    questions=(
        "Which city is the capital of {x}?", "What city is the capital of {x}?", "Name the capital of {x}.",
        "capital of {x}", "{x} has which capital?", "What is the name of the capital of {x}?", "{x}: capital?",
        "Which is the capital of {x}?", "What capital does {x} have?", "Can you name the capital of {x}?",
    ),
    held_out=(
        "Please name the capital of {x}.", "Which city is {x}'s capital?", "Which capital does {x} have?",
        "Tell me which city is the capital of {x}.",
    ),
)  # fmt: skip

CAPITAL_OF = Phrasings(
    nouns=("the country whose capital is {x}",),
    questions=(
        "{x} is the capital of which country?", "Which country has the capital {x}?", "{x} is the capital of what?",
        "What country is {x} the capital of?", "Of which country is {x} the capital?",
    ),
    held_out=("Which country is {x} the capital of?", "What country has the capital {x}?"),
)  # fmt: skip

OPPOSITE = Phrasings(
    nouns=("the opposite of {x}",),
    questions=(
        "What word is the opposite of {x}?", "Which word means the opposite of {x}?", "opposite of {x}",
        "What means the opposite of {x}?", "{x}: opposite?", "Name the opposite of {x}.",
        "Give me a word that means the opposite of {x}.", "Can you name the opposite of {x}?",
    ),
    held_out=(
        "Which word is the opposite of {x}?", "Please name the opposite of {x}.",
        "Tell me a word that means the opposite of {x}.",
    ),
)  # fmt: skip

COLOUR = Phrasings(
    nouns=("the {c} of {x}",),
    questions=(
        "What {c} is {x}?", "Which {c} is {x}?", "What {c} does {x} have?", "Which {c} does {x} have?",
        "{x} is what {c}?", "Tell me what {c} {x} is.", "Do you know what {c} {x} is?", "What {c} is {x} usually?",
        "Can you tell me what {c} {x} is?", "Say what {c} {x} is.", "What is the usual {c} of {x}?", "{c} of {x}",
    ),
    held_out=(
        "Which {c} is {x} usually?", "Could you tell me what {c} {x} is?", "Please say what {c} {x} is.",
        "I want to know what {c} {x} is.",
    ),
)  # fmt: skip

BACKWARDS = Phrasings(
    nouns=("{x} backwards", "{x} spelled backwards", "the word {x} backwards"),
    questions=(
        "Spell {x} backwards.", "Write {x} backwards.", "How do you spell {x} backwards?", "Reverse the word {x}.",
        "Can you spell {x} backwards?", "Please spell {x} backwards.", "How is {x} spelled backwards?", "Reverse {x}.",
        "Turn {x} around.", "Can you write {x} backwards?", "How do you write the word {x} backwards?",
        "Spell the word {x} in reverse.",
    ),
    held_out=(
        "Could you spell {x} backwards?", "Please write {x} backwards.", "How do you write {x} backwards?",
        "Spell the word {x} backwards.",
    ),
)  # fmt: skip

AFTER = Phrasings(
    nouns=("the number after {a}", "the next number after {a}"),
    questions=(
        "What comes after {a}?",
        "Which number comes after {a}?",
        "What number follows {a}?",
        "What follows {a}?",
    ),
    held_out=("What number comes after {a}?", "Which number follows {a}?"),
)
BEFORE = Phrasings(
    nouns=("the number before {a}",),
    questions=("What comes before {a}?", "Which number comes before {a}?", "What number is before {a}?"),
    held_out=("What number comes before {a}?", "Which number is before {a}?"),
)
COUNT_TO = Phrasings(
    nouns=(),
    questions=(
        "Count from {a} to {b}.", "Can you count from {a} to {b}?", "Please count from {a} to {b}.",
        "Count {a} to {b}.", "Say the numbers from {a} to {b}.", "List the numbers from {a} to {b}.",
    ),
    held_out=("Could you count from {a} to {b}?", "Now count from {a} to {b}.", "Write the numbers from {a} to {b}."),
)  # fmt: skip
COUNT_ON = Phrasings(
    nouns=(),
    questions=(
        "Count on from {a}.", "Can you count on from {a}?", "Keep counting from {a}.", "Please count on from {a}.",
        "Continue counting from {a}.", "Count up from {a}.", "Count on after {a}.",
    ),
    held_out=("Could you count on from {a}?", "Go on counting from {a}.", "Please count up from {a}."),
)  # fmt: skip
COUNT_DOWN = Phrasings(
    nouns=(),
    questions=("Count down from {a}.", "Count backwards from {a}.", "Can you count down from {a}?", "Count down: {a}."),
    held_out=("Please count down from {a}.", "Can you count backwards from {a}?"),
)

STORY = Phrasings(
    nouns=(),
    questions=(
        "Tell me a story about {x}.", "Tell a story about {x}.", "Can you tell me a story about {x}?",
        "I want a story about {x}.", "Please tell me a story about {x}.", "Write a story about {x}.",
        "A story about {x}, please.", "story about {x}", "Could you tell a story about {x}?",
        "Tell me a short story about {x}.", "Do you know a story about {x}?", "Make up a story about {x}.",
        "I would like to hear a story about {x}.", "Give me a short story about {x}.",
    ),
    held_out=(
        "Could you tell me a story about {x}?", "Please tell a short story about {x}.",
        "I would like a story about {x}.", "Write me a short story about {x}.",
    ),
)  # fmt: skip
ANY_STORY = Phrasings(
    nouns=(),
    questions=(
        "Tell me a story.", "Tell a story.", "Can you tell me a story?", "I want to hear a story.",
        "Tell me another story.", "Please tell me a story.", "Do you know a story?", "Another story, please.",
    ),
    held_out=("Could you tell me a story?", "Please tell a story.", "Tell me a short story."),
)  # fmt: skip

NAME_IS = Phrasings(
    nouns=(),
    questions=(
        "My name is {x}.", "I am {x}.", "I'm {x}.", "Call me {x}.", "Hi, I am {x}.", "Hello, my name is {x}.",
        "You can call me {x}.", "Hey, I'm {x}.", "By the way, my name is {x}.", "People call me {x}.",
    ),
    held_out=("Hi, my name is {x}.", "Hello, I am {x}.", "Please call me {x}."),
)  # fmt: skip
NAME_ASKED = Phrasings(
    nouns=("my name",),
    questions=(
        "Who am I?", "What am I called?", "Do you remember my name?", "Can you remember my name?",
        "Do you still know my name?", "What did I say my name was?", "What did I tell you my name was?",
    ),
    held_out=("Do you still remember my name?", "Do you remember what my name is?", "Do you know who I am?"),
)  # fmt: skip

# Going on from the last result.
ADD_TO_THAT = Phrasings(
    nouns=(),
    questions=(
        "Add {b} to that.", "And plus {b}?", "Plus {b}?", "Now add {b}.", "Add {b} more.", "+ {b}", "And add {b}?",
        "Now plus {b}.", "What is that plus {b}?", "And {b} more?",
    ),
    held_out=("Please add {b} to that.", "Now add {b} to that.", "And that plus {b}?"),
)  # fmt: skip
TAKE_FROM_THAT = Phrasings(
    nouns=(),
    questions=(
        "Subtract {b} from that.", "And minus {b}?", "Minus {b}?", "Now take away {b}.", "Take {b} away.", "- {b}",
        "Now minus {b}.", "What is that minus {b}?", "And {b} less?", "Now subtract {b}.",
    ),
    held_out=("Please subtract {b} from that.", "Now take {b} away.", "And that minus {b}?"),
)  # fmt: skip
