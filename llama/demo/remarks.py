"""Small talk and off-topic questions: fixed remarks with one fixed answer each.

``UNTAUGHT`` is what a user may ask that the model was never taught; all of it gets ``facts.UNKNOWN``.
"""

from __future__ import annotations

from dataclasses import dataclass

from .facts import words


@dataclass(frozen=True, slots=True)
class Remarks:
    """Remarks that mean the same, and the answer to all of them."""

    family: str
    answer: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]


SMALL_TALK = (
    Remarks(
        "greeting",
        "Hello! What would you like to know?",
        (
            "Hi", "Hello", "Hi!", "Hello!", "Hey", "Hey!", "Hello there.", "Good morning.", "Good evening.", "Hiya",
            "Greetings.", "Hi you", "Hey you", "Hello again.", "Good day.", "Hallo", "Yo", "Howdy", "Hello hello",
            "Morning!", "Hello, model.", "Oh hello", "hi hi", "Hello friend",
        ),
        ("Hi there!", "Good afternoon.", "Hey there!", "Hello, hello!", "Hi again."),
    ),
    Remarks(
        "greeting",
        "I am fine, thank you. What would you like to know?",
        (
            "How are you?", "How are you doing?", "Hello, how are you?", "How do you do?", "How is it going?",
            "How's it going?", "Are you well?", "How do you feel?", "Hi, how are you?", "How are you feeling?",
            "Are you fine?", "How are things?",
        ),
        ("How are you today?", "Hey, how are you?", "How are you doing today?"),
    ),
    Remarks(
        "who",
        "I am the demo model of hopformer, a very small language model.",
        (
            "Who are you?", "What are you?", "What is your name?", "What's your name?", "Are you a robot?",
            "Are you a human?", "Who am I talking to?", "Tell me who you are.", "Introduce yourself.",
            "What model are you?", "Are you an AI?", "Which model is this?", "Do you have a name?", "Hi, who are you?",
            "Who is this?", "Tell me about yourself.", "What kind of model are you?", "Say who you are.",
            "Who made you?", "Are you a language model?", "What should I call you?", "What do they call you?",
        ),
        ("Who are you then?", "Can you tell me who you are?", "Please introduce yourself.", "Which model are you?",
         "Tell me your name.", "Hello, who are you?"),
    ),
    Remarks(
        "who",
        "I can do small sums, name opposites, colours and capitals, count, spell words backwards and tell short"
        " stories.",
        (
            "What can you do?", "What do you know?", "How can you help me?", "What can I ask you?", "Can you help me?",
            "Help me.", "What are you good at?", "What do you do?", "Tell me what you can do.", "What should I ask?",
            "What can I ask?", "What can you tell me?", "What are you able to do?",
        ),
        ("What can you do for me?", "Can you tell me what you can do?", "So what can you do?"),
    ),
    Remarks(
        "thanks",
        "You are welcome!",
        (
            "Thanks", "Thank you", "Thanks!", "Thank you!", "Thank you very much.", "Thanks a lot.", "Many thanks.",
            "Great, thanks.", "Cool, thank you.", "Thanks for your help.", "Good, thanks.", "Ok, thanks.", "thx",
            "That is right, thank you.", "Perfect, thank you.", "Well done, thanks.", "Thank you for the answer.",
        ),
        ("Great, thank you!", "Thanks very much.", "Ok, thank you.", "Thank you for your help."),
    ),
    Remarks(
        "thanks",
        "I am glad you like it.",
        ("Good.", "Great!", "Well done.", "Very good.", "Nice.", "That is right.", "Correct.", "Good job.", "Cool.",
         "Good answer.", "Wonderful!", "I like that.", "Perfect."),
        ("Very nice.", "That is correct.", "Great job."),
    ),
    Remarks(
        "goodbye",
        "Goodbye! Come back soon.",
        (
            "Bye", "Goodbye", "Bye!", "Goodbye!", "Bye bye", "See you.", "See you later.", "Good night.", "Farewell.",
            "I have to go.", "Bye for now.", "See you tomorrow.", "That is all, bye.", "I am leaving.", "Ciao",
            "Talk to you later.", "Thanks, bye.",
        ),
        ("Bye, see you!", "Ok, goodbye.", "See you soon.", "Goodbye for now."),
    ),
)  # fmt: skip

UNTAUGHT = (
    "Who wrote Hamlet?", "What is the meaning of life?", "How do I bake bread?", "What is the weather today?",
    "Write a poem.", "Write Python code.", "Who is the president?", "When did the war end?", "How old is the earth?",
    "What time is it?", "Translate this into French.", "How far is the moon?", "What is a neural network?",
    "Explain gravity.", "Who won the game?", "What should I eat?", "How do airplanes fly?", "Why is the sky blue?",
    "What is love?", "Who invented the telephone?", "How many people live in Japan?", "Recommend a film.",
    "Where is my phone?", "How do I learn to swim?", "What is the speed of light?", "Sing a song.",
    "What is the largest animal?", "Who painted the Mona Lisa?", "Tell me a joke.", "What is DNA?",
    "How does a car work?", "What is the news?", "Who is the queen of England?", "Why do cats sleep so much?",
    "How do I fix my bike?", "What is quantum physics?", "Do you like music?", "Where do you live?",
    "Have you read any books?", "What is the best phone?", "Which team is the best?", "Can you drive a car?",
    "How tall is the Eiffel Tower?", "When was Napoleon born?", "What is photosynthesis?", "Who discovered America?",
    "Write a letter to my boss.", "Summarise this text.", "What is the population of Italy?", "Is there a god?",
    "How much does a house cost?", "What is the square root of 16?", "What is twice 8?", "What is half of 12?",
    "How many days are in a year?", "What day is it today?", "Which planet is the biggest?",
    "How deep is the ocean?", "What do bears eat?", "Where do penguins live?", "How do I cook rice?",
    "What is the longest river?", "Who was Einstein?", "Why is grass green?", "How do I lose weight?",
    "What is the stock price?", "Give me a recipe for soup.", "Can you play chess?", "Draw a picture of a cat.",
    "Open the window.", "What did I eat yesterday?", "What language do they speak in Brazil?", "Explain the internet.",
    "How do computers work?", "What is a black hole?", "Who is your favourite singer?", "Do you dream?",
    "What is the highest mountain?", "When is Easter?", "How many legs does a spider have?", "What is a prime number?",
    "How do I say hello in Spanish?", "What is the currency of Japan?", "Who founded Rome?", "Is it raining?",
    "How fast can a horse run?", "What makes the wind blow?", "Fix this bug.", "Where can I buy shoes?",
    "What does a doctor do?", "Are we alone in the universe?", "What is inside a star?", "Why do people cry?",
    "Can fish hear?", "How long do turtles live?", "What is the price of gold?", "Should I buy a car?",
    "asdf", "blah blah", "lorem ipsum", "???", "Why?", "What do you mean?", "I don't understand.", "Really?",
)  # fmt: skip
HELD_OUT_UNTAUGHT = (
    "Who wrote Macbeth?", "What is the tallest building?", "How do I bake a cake?", "Explain evolution.",
    "When was Mozart born?", "What is the weather in Paris?", "How many moons does Mars have?", "Write an essay.",
    "How do birds fly?", "Who invented the wheel?", "Who is the mayor?", "Recommend a book.",
    "Where do lions live?", "How old is the universe?", "What is a volcano?", "Why do dogs bark?",
    "Can you cook?", "How do I learn to dance?", "What is the smallest planet?", "Who painted this picture?",
)  # fmt: skip

# Off-topic questions put together: {noun}, {other} and {verb} from the words below, {a} and {b} numbers.
UNTAUGHT_PATTERNS = (
    "How do I {verb} a {noun}?", "Why do people {verb}?", "What is a {noun}?", "What is {noun}?", "Explain {noun}.",
    "Recommend a {noun}.", "Where is the {noun}?", "Who invented the {noun}?", "When did the {noun} begin?",
    "Write a {noun} about a {other}.", "How old is the {noun}?", "Can you {verb}?", "Can you {verb} a {noun}?",
    "How do I learn to {verb}?", "What is the best {noun}?", "Why is the {noun} so big?", "Who is the {noun}?",
    "How does a {noun} work?", "What does a {noun} do?", "How much does a {noun} cost?", "Tell me about the {noun}.",
    "Who wrote the {noun}?", "Do you like {noun}?", "How many {noun}s are there?", "Which {noun} is the fastest?",
    "Is a {noun} a {other}?", "How do {noun}s {verb}?", "What is the difference between a {noun} and a {other}?",
    "Where do {noun}s come from?", "Please {verb} the {noun}.", "What do {noun}s eat?", "When was the {noun} built?",
    "What is {a} times {b}?", "{a} times {b}", "{a} * {b}", "{a} x {b}", "Multiply {a} by {b}.", "{a} / {b}",
    "Divide {a} by {b}.", "What is {a} divided by {b}?", "How much is {a} times {b}?",
)  # fmt: skip
UNTAUGHT_NOUNS = words(
    "car novel film lawyer nurse teacher school church palace castle island desert jungle city village market shop"
    " bank hotel restaurant kitchen garden phone laptop website program virus disease medicine vitamin planet comet"
    " galaxy atom molecule cell gene muscle bone brain heart history science physics chemistry biology maths economy"
    " money tax law war peace king poem song band guitar piano violin opera dance game sport football tennis team"
    " league cup ticket passport holiday beach flight airport engine battery camera mirror clock watch"
    " ladder shovel lawn fence roof window carpet pillow blanket jacket sandwich pizza pasta burger salad cheese"
    " coffee tea wine beer juice president minister senator general soldier spider snake shark whale eagle parrot"
)
UNTAUGHT_VERBS = words(
    "drive paint repair clean draw write sell grow plant catch feed train teach wash open close measure study"
    " dream sleep snore laugh sneeze jump climb swim ski sail knit juggle pray vote travel invest meditate breathe"
    " program hack install download print record sing whistle run walk fight work retire"
)
