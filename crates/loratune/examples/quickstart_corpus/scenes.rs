//! Scenes: a sentence or two in which something happens, and what can be asked about it.

use crate::draw::Draw;
use crate::words::*;

/// A question about a scene and its answer.
pub struct Fact {
    pub question: String,
    pub answer: String,
}

/// What happened, and what can be asked.
pub struct Scene {
    pub text: String,
    pub facts: Vec<Fact>,
}

/// People, goods and places of one story. Nobody and nothing is used twice, so that every question has one answer.
pub struct Cast {
    people: Vec<Person>,
    items: Vec<Item>,
    places: Vec<&'static str>,
    days: Vec<&'static str>,
}

/// The most scenes for which a cast is large enough.
pub const MOST_SCENES: usize = 5;

impl Cast {
    pub fn new(draw: &mut Draw) -> Cast {
        Cast {
            people: draw.sample(PEOPLE, 2 * MOST_SCENES),
            items: draw.sample(ITEMS, 5 * MOST_SCENES),
            places: draw.sample(PLACES, 2 * MOST_SCENES),
            days: draw.sample(DAYS, MOST_SCENES),
        }
    }

    fn person(&mut self) -> Person {
        self.people.pop().expect("two people per scene")
    }

    fn item(&mut self) -> Item {
        self.items.pop().expect("five items per scene")
    }

    fn place(&mut self) -> &'static str {
        self.places.pop().expect("two places per scene")
    }

    fn day(&mut self) -> &'static str {
        self.days.pop().expect("one day per scene")
    }
}

/// Gathers the facts of a scene.
#[derive(Default)]
struct Facts(Vec<Fact>);

impl Facts {
    /// The answer as a whole sentence.
    fn long(&mut self, question: impl Into<String>, answer: impl Into<String>) {
        self.0.push(Fact { question: question.into(), answer: answer.into() });
    }

    /// The same thing asked for three ways: a sentence, the bare words, the bare words in quotes.
    fn all(&mut self, question: &str, sentence: impl Into<String>, words: &str) {
        self.long(question, sentence);
        self.long(format!("In short: {question}"), format!("{words}."));
        self.long(format!("In quotes: {question}"), format!("\"{words}\""));
    }

    /// The same for a number, which is never quoted.
    fn number(&mut self, question: &str, sentence: impl Into<String>, number: usize) {
        self.long(question, sentence);
        self.long(format!("In short: {question}"), format!("{number}."));
        self.long(format!("As a number: {question}"), format!("{number}"));
    }
}

/// `the old market` → `The old market`.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// A random scene.
pub fn scene(draw: &mut Draw, cast: &mut Cast) -> Scene {
    match draw.below(16) {
        0..=4 => purchase(draw, cast),
        5 | 6 => gift(draw, cast),
        7 | 8 => possession(draw, cast),
        9 => walk(draw, cast),
        10 => work(draw, cast),
        11 => pet(draw, cast),
        12 => note(draw, cast),
        13 => shelf(draw, cast),
        14 => prices(draw, cast),
        _ => weather(draw, cast),
    }
}

fn purchase(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (buyer, seller, item, place, day) =
        (cast.person(), cast.person(), cast.item(), cast.place(), cast.day());
    let (n, s, many) = (buyer.name, seller.name, item.many);
    let (they, count, price) = (buyer.they, draw.number(), draw.number());
    let they_capital = capital(they);
    // What the sentence tells besides buyer, goods, count and price: the seller, the place, the day.
    let (text, told) = match draw.below(9) {
        0 => (
            format!(
                "On {day} {n} went to {place}. {they_capital} bought {count} {many} for {price} dollars."
            ),
            [false, true, true],
        ),
        1 => (
            format!("{n} bought {count} {many} for {price} dollars at {place} on {day}."),
            [false, true, true],
        ),
        2 => (format!("{s} sold {count} {many} to {n}. {n} paid {price} dollars."), [true, false, false]),
        3 => (
            format!("Last {day} {n} stopped at {place} and paid {price} dollars for {count} {many}."),
            [false, true, true],
        ),
        4 => (
            format!("At {place} {n} saw {count} {many}. They cost {price} dollars, and {they} bought them."),
            [false, true, false],
        ),
        5 => (format!("{n} paid {s} {price} dollars for {count} {many} on {day}."), [true, false, true]),
        6 => (format!("On {day} {s} sold {n} {count} {many} for {price} dollars."), [true, false, true]),
        7 => (
            format!("{n} needed {many}. {they_capital} got {count} of them from {s} for {price} dollars."),
            [true, false, false],
        ),
        _ => (format!("For {price} dollars {n} bought {count} {many}. It was {day}."), [false, false, true]),
    };
    let mut facts = Facts::default();
    facts.all(&format!("Who bought the {many}?"), format!("{n} bought the {many}."), n);
    facts.all(&format!("What did {n} buy?"), format!("{n} bought {count} {many}."), many);
    facts.number(&format!("How many {many} did {n} buy?"), format!("{n} bought {count} {many}."), count);
    facts.number(&format!("How much did {n} pay?"), format!("{n} paid {price} dollars."), price);
    facts.number(&format!("What did the {many} cost?"), format!("The {many} cost {price} dollars."), price);
    let unknown = "The story does not say.";
    let question = format!("When did {n} buy the {many}?");
    match told[2] {
        true => facts.all(&question, format!("{n} bought them on {day}."), day),
        false => facts.long(question, unknown),
    }
    let question = format!("Where did {n} buy the {many}?");
    match told[1] {
        true => facts.all(&question, format!("{n} bought them at {place}."), place),
        false => facts.long(question, unknown),
    }
    let question = format!("Who sold the {many}?");
    match told[0] {
        true => facts.all(&question, format!("{s} sold the {many}."), s),
        false => facts.long(question, unknown),
    }
    Scene { text, facts: facts.0 }
}

fn gift(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (giver, taker, item, day) = (cast.person().name, cast.person().name, cast.item(), cast.day());
    let (colour, one) = (draw.pick(COLOURS), item.one);
    let text = match draw.below(4) {
        0 => format!("{giver} gave the {colour} {one} to {taker} on {day}."),
        1 => format!("On {day} {giver} gave {taker} the {colour} {one}."),
        2 => format!("{taker} got the {colour} {one} from {giver}. That was on {day}."),
        _ => format!("It was {day}, and {giver} brought {taker} the {colour} {one}."),
    };
    let mut facts = Facts::default();
    facts.all(&format!("Who gave the {one} away?"), format!("{giver} gave it away."), giver);
    facts.all(&format!("Who has the {one} now?"), format!("{taker} has the {one} now."), taker);
    facts.all(
        &format!("What did {giver} give to {taker}?"),
        format!("{giver} gave the {colour} {one}."),
        one,
    );
    facts.all(&format!("What colour is the {one}?"), format!("The {one} is {colour}."), colour);
    facts.all(&format!("On which day did {taker} get the {one}?"), format!("It was on {day}."), day);
    Scene { text, facts: facts.0 }
}

fn possession(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (owner, first, second) = (cast.person(), cast.item().many, cast.item().many);
    let (n, they, a, b) = (owner.name, owner.they, draw.number(), draw.number());
    let text = match draw.below(3) {
        0 => format!("{n} has {a} {first} and {b} {second}."),
        1 => format!("In the house of {n} there are {a} {first} and {b} {second}."),
        _ => format!("{n} counted: {they} has {a} {first}, but {b} {second}."),
    };
    let mut facts = Facts::default();
    facts.number(&format!("How many {first} does {n} have?"), format!("{n} has {a} {first}."), a);
    facts.number(&format!("How many {second} does {n} have?"), format!("{n} has {b} {second}."), b);
    facts.all(&format!("Who has {b} {second}?"), format!("{n} has {b} {second}."), n);
    facts.long(format!("What does {n} have?"), format!("{n} has {a} {first} and {b} {second}."));
    facts.long(format!("Name in quotes the things that {n} has."), format!("\"{first}\", \"{second}\""));
    Scene { text, facts: facts.0 }
}

fn walk(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (person, from, to) = (cast.person(), cast.place(), cast.place());
    let (n, they, time, feeling) = (person.name, person.they, draw.pick(TIMES), draw.pick(FEELINGS));
    let text = match draw.below(3) {
        0 => format!("In the {time} {n} walked from {from} to {to}. {} was {feeling}.", capital(they)),
        1 => format!("{n} was {feeling}. In the {time} {they} left {from} and went to {to}."),
        _ => format!("{n} was {feeling} and came to {to} from {from} in the {time}."),
    };
    let mut facts = Facts::default();
    facts.all(&format!("Where is {n} now?"), format!("{n} is at {to}."), to);
    facts.all(&format!("Where was {n} before?"), format!("{n} was at {from}."), from);
    facts.all(&format!("Who went to {to}?"), format!("{n} went to {to}."), n);
    facts.all(&format!("How was {n}?"), format!("{n} was {feeling}."), feeling);
    facts.long(format!("When did {n} go to {to}?"), format!("{n} went there in the {time}."));
    Scene { text, facts: facts.0 }
}

fn work(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (person, place, job) = (cast.person(), cast.place(), draw.pick(JOBS));
    let n = person.name;
    let text = match draw.below(2) {
        0 => format!("{n} is a {job} and works at {place}."),
        _ => format!("{} is where {n} works. {} is a {job}.", capital(place), capital(person.they)),
    };
    let mut facts = Facts::default();
    facts.all(&format!("What is the work of {n}?"), format!("{n} is a {job}."), job);
    facts.all(&format!("Where does {n} work?"), format!("{n} works at {place}."), place);
    facts.all(&format!("Who works at {place}?"), format!("{n} works at {place}."), n);
    Scene { text, facts: facts.0 }
}

fn pet(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (n, animal, pet, colour) =
        (cast.person().name, draw.pick(ANIMALS), draw.pick(PETS), draw.pick(COLOURS));
    let text = match draw.below(2) {
        0 => format!("{n} has a {colour} {animal} with the name {pet}."),
        _ => format!("The {colour} {animal} of {n} is called {pet}."),
    };
    let mut facts = Facts::default();
    facts.all(&format!("What is the name of the {animal} of {n}?"), format!("Its name is {pet}."), pet);
    facts.all(&format!("Which animal does {n} have?"), format!("{n} has a {animal}."), animal);
    facts.all(&format!("What colour is {pet} the {animal}?"), format!("{pet} is {colour}."), colour);
    Scene { text, facts: facts.0 }
}

fn note(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (writer, reader, item) = (cast.person().name, cast.person().name, cast.item());
    let (count, many, one, day) = (draw.number(), item.many, item.one, cast.day());
    let words = match draw.below(4) {
        0 => format!("Please bring {count} {many}."),
        1 => format!("The {one} is here. Come on {day}."),
        2 => format!("{reader}, where is my {one}?"),
        _ => format!("{count} {many} on {day}, please!"),
    };
    let text = match draw.below(3) {
        0 => format!("{writer} wrote a note to {reader}: \"{words}\""),
        1 => format!("\"{words}\" {writer} said to {reader}."),
        _ => format!("{reader} found a note from {writer} (on the door): \"{words}\""),
    };
    let mut facts = Facts::default();
    facts.long(format!("What does {writer} say to {reader}?"), format!("{writer} says: \"{words}\""));
    facts.long(format!("In quotes: What does {writer} say to {reader}?"), format!("\"{words}\""));
    facts.all(&format!("Who is asked about the {many}?"), format!("{reader} is asked."), reader);
    facts.all(&format!("Who speaks about the {many}?"), format!("{writer} does."), writer);
    Scene { text, facts: facts.0 }
}

fn shelf(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let place = cast.place();
    let n = draw.between(2, 5);
    let goods: Vec<&str> = (0..n).map(|_| cast.item().many).collect();
    let row = goods.join(", ");
    let text = match draw.below(2) {
        0 => format!("The shelf at {place} is full: {row}."),
        _ => format!("You can get many things at {place}: {row}."),
    };
    let quoted: Vec<String> = goods.iter().map(|g| format!("\"{g}\"")).collect();
    let mut facts = Facts::default();
    facts.long(format!("What can you get at {place}?"), format!("You can get {row}."));
    facts.long(format!("Name in quotes what is at {place}."), quoted.join(", "));
    facts.all(&format!("What comes first at {place}?"), format!("The {} come first.", goods[0]), goods[0]);
    facts.all(
        &format!("What comes last at {place}?"),
        format!("The {} come last.", goods[n - 1]),
        goods[n - 1],
    );
    facts.all(&format!("Where are the {}?", goods[0]), format!("They are at {place}."), place);
    Scene { text, facts: facts.0 }
}

fn prices(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (place, first, second) = (cast.place(), cast.item().many, cast.item().many);
    let (a, b) = (draw.number(), draw.number());
    let text = match draw.below(2) {
        0 => format!("At {place} the {first} cost {a} dollars and the {second} cost {b} dollars."),
        _ => format!("{} sells {first} for {a} dollars and {second} for {b} dollars.", capital(place)),
    };
    let mut facts = Facts::default();
    facts.number(&format!("What do the {first} cost?"), format!("The {first} cost {a} dollars."), a);
    facts.number(&format!("What do the {second} cost?"), format!("The {second} cost {b} dollars."), b);
    facts.all(
        &format!("What costs {b} dollars at {place}?"),
        format!("The {second} cost {b} dollars."),
        second,
    );
    facts.long(format!("Write the price list of {place}."), format!("{first}: {a}; {second}: {b}"));
    Scene { text, facts: facts.0 }
}

fn weather(draw: &mut Draw, cast: &mut Cast) -> Scene {
    let (day, kind) = (cast.day(), draw.sample(WEATHER, 2));
    let text = match draw.below(2) {
        0 => format!("On {day} it was {} and {}.", kind[0], kind[1]),
        _ => format!("{day} was {}, and the {} was {}.", kind[0], draw.pick(TIMES), kind[1]),
    };
    let mut facts = Facts::default();
    facts.long(format!("How was {day}?"), format!("{day} was {} and {}.", kind[0], kind[1]));
    facts.all(&format!("When was it {}?", kind[0]), format!("It was {} on {day}.", kind[0]), day);
    Scene { text, facts: facts.0 }
}
