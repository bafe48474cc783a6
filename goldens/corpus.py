"""A few hundred small sentences with learnable structure, made here so that anyone may publish them."""

COLOURS = ["red", "blue", "green", "white", "black", "yellow"]
THINGS = ["boat", "lamp", "bird", "stone", "apple", "window", "letter"]
PLACES = ["harbour", "garden", "kitchen", "tower", "market"]
PEOPLE = ["Ana", "Jörg", "Mei", "Omar", "Zoë"]


def conversations(count: int, start: int = 0) -> list[tuple[str, str]]:
    """`count` pairs of a question and its answer; the answer follows from the question."""
    pairs = []
    for i in range(start, start + count):
        colour, thing = COLOURS[i * 5 % 6], THINGS[i * 3 % 7]
        place, person = PLACES[i * 2 % 5], PEOPLE[i * 7 % 5]
        match i % 4:
            case 0:
                pairs.append((f"Where is the {colour} {thing}?", f"In the {place}."))
            case 1:
                pairs.append((f"{i} + {i % 7} =", f"{i + i % 7}"))
            case 2:
                pairs.append((f"Who has the {thing}?", f"{person} has the {colour} {thing}, near the {place}."))
            case _:
                pairs.append((f"Spell {thing}", " ".join(thing)))
    return pairs
