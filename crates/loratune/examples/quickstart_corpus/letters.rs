//! The grammar of the letters, of the shop's answers, and of the notes between them.

use loratune_engine::rng::Key;

/// A stream of choices.
pub struct Draw {
    key: Key,
    next: u64,
}

impl Draw {
    pub fn new(key: Key, row: usize) -> Draw {
        Draw { key: key.with(row as u64), next: 0 }
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        (self.key.uniform(self.next) * n as f64) as usize
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Which items a letter may be about: some occur in the task's test rows only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    All,
    Train,
    Test,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    Delivery,
    Damage,
    Refund,
    Invoice,
    Hours,
    Praise,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Friendly,
    Neutral,
    Angry,
}

impl Topic {
    const ALL: [Topic; 6] =
        [Topic::Delivery, Topic::Damage, Topic::Refund, Topic::Invoice, Topic::Hours, Topic::Praise];

    pub fn name(self) -> &'static str {
        ["delivery", "damage", "refund", "invoice", "hours", "praise"][self as usize]
    }

    fn openings(self) -> &'static [&'static str] {
        match self {
            Topic::Delivery => &[
                "My {item} has not arrived yet.",
                "I ordered a {item} on {day} and it is still not here.",
                "Where is the {item} that I paid for?",
                "The parcel with my {item} is late.",
                "I have been waiting for my {item} since {day}.",
                "You said the {item} would come on {day}, but it did not.",
                "The driver left with my {item} again.",
                "How long does it take until the {item} is here?",
            ],
            Topic::Damage => &[
                "The {item} came with a crack.",
                "My {item} broke after {number} days.",
                "There is a long scratch on the {item}.",
                "The {item} that I got on {day} is broken.",
                "One part of the {item} is missing.",
                "The {item} fell apart on {day}.",
                "The box was open and the {item} was bent.",
                "My new {item} does not work.",
            ],
            Topic::Refund => &[
                "I want my money back for the {item}.",
                "Please refund the {item} that I sent back on {day}.",
                "I returned the {item}, but I still wait for the {number} dollars.",
                "When do I get the money for the {item}?",
                "I sent the {item} back {number} days ago and have no refund.",
                "Can I return the {item} and get my money back?",
            ],
            Topic::Invoice => &[
                "I was charged twice for the {item}.",
                "The bill for the {item} shows the wrong address.",
                "Please send me the invoice for the {item}.",
                "The invoice says {number} dollars, but the {item} costs less.",
                "I need a bill with my name for the {item}.",
                "There is a mistake in the invoice for the {item}.",
            ],
            Topic::Hours => &[
                "Are you open on {day}?",
                "When does the shop close on {day}?",
                "Can I come by on {day} to look at a {item}?",
                "Is the shop in {city} open on {day} at {number}?",
                "From what time can I visit you on {day}?",
                "Do you open early on {day}?",
            ],
            Topic::Praise => &[
                "I love the {item}!",
                "The {item} is even nicer than in the picture.",
                "Thank you for the {item}, it works so well.",
                "My whole family likes the {item}.",
                "The {item} from {city} is the best I ever had.",
                "What a beautiful {item}!",
            ],
        }
    }

    fn answers(self) -> &'static [&'static str] {
        match self {
            Topic::Delivery => {
                &["We will look for the parcel with your {item}.", "Your {item} is on its way."]
            }
            Topic::Damage => &["We will send you a new {item}.", "Please send us a picture of the {item}."],
            Topic::Refund => &["You will get the money for the {item} back.", "We will pay back the {item}."],
            Topic::Invoice => {
                &["We will correct the bill for the {item}.", "You will get a new invoice for the {item}."]
            }
            Topic::Hours => &["We are open from nine to six.", "The shop opens at nine, come and see us."],
            Topic::Praise => {
                &["We are glad that you like the {item}.", "It is good to hear that about the {item}."]
            }
        }
    }
}

impl Mood {
    pub fn name(self) -> &'static str {
        ["friendly", "neutral", "angry"][self as usize]
    }

    fn lines(self) -> &'static [&'static str] {
        match self {
            Mood::Friendly => &[
                "You are always so kind.",
                "Many warm greetings from {city}!",
                "Have a lovely {day}!",
                "I like your shop very much.",
                "Thanks a lot for your help!",
                "It is always nice to write to you.",
            ],
            Mood::Neutral => &[
                "The order number is {number}.",
                "I bought it in {city}.",
                "You can reach me in the evening.",
                "I live in {city}.",
                "It is order {number}.",
                "My account is in the name of {name}.",
            ],
            Mood::Angry => &[
                "This is a bad joke.",
                "I am really upset.",
                "Never again!",
                "What kind of shop is this?",
                "I am tired of your excuses.",
                "That is a shame, {number} letters and no answer!",
            ],
        }
    }
}

const URGENT: [&str; 6] = [
    "I need it before {day}.",
    "Please answer today.",
    "It is very urgent.",
    "There is no time left.",
    "Please hurry.",
    "I have to know it right now.",
];
const CALM: [&str; 4] =
    ["There is no hurry.", "Take your time.", "It can wait until {day}.", "Answer when you can."];

const ITEMS: [&str; 40] = [
    "lamp", "chair", "kettle", "clock", "mirror", "basket", "carpet", "teapot", "shelf", "radio", "blanket",
    "bottle", "table", "candle", "pillow", "vase", "bowl", "spoon", "brush", "ladder", "tent", "drum",
    "flute", "kite", "globe", "stool", "oven", "curtain", "bucket", "hammer", "saddle", "wallet", "mug",
    "sofa", "guitar", "bench", "jacket", "camera", "umbrella", "suitcase",
];
/// The last so many items occur in the task's test rows only.
const TEST_ITEMS: usize = 8;
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const CITIES: [&str; 12] = [
    "Bergen", "Porto", "Galway", "Ghent", "Turin", "Graz", "Lyon", "Krakow", "Seville", "Malmo", "Basel",
    "Riga",
];
const NAMES: [&str; 24] = [
    "Mia", "Hugo", "Zoe", "Paul", "Nora", "Emil", "Ida", "Leo", "Clara", "Otto", "Eva", "Max", "Lena",
    "Theo", "Rosa", "Ben", "Alma", "Finn", "Greta", "Jonas", "Vera", "Oskar", "Ella", "Anton",
];

/// What stands in the places of a sentence.
struct Fill {
    item: &'static str,
    day: &'static str,
    city: &'static str,
    name: &'static str,
    number: String,
}

impl Fill {
    fn draw(draw: &mut Draw, pool: Pool) -> Fill {
        let (train, test) = ITEMS.split_at(ITEMS.len() - TEST_ITEMS);
        Fill {
            item: match pool {
                Pool::All => draw.pick(&ITEMS),
                Pool::Train => draw.pick(train),
                Pool::Test => draw.pick(test),
            },
            day: draw.pick(&DAYS),
            city: draw.pick(&CITIES),
            name: draw.pick(&NAMES),
            number: (2 + draw.below(97)).to_string(),
        }
    }

    fn apply(&self, sentence: &str) -> String {
        sentence
            .replace("{item}", self.item)
            .replace("{day}", self.day)
            .replace("{city}", self.city)
            .replace("{name}", self.name)
            .replace("{number}", &self.number)
    }
}

/// A letter to the shop.
pub struct Letter {
    pub topic: Topic,
    pub mood: Mood,
    pub urgent: bool,
    pub text: String,
    /// The sentences before names were put in.
    sentences: Vec<&'static str>,
    item: &'static str,
}

impl Letter {
    pub fn draw(draw: &mut Draw, pool: Pool) -> Letter {
        let fill = Fill::draw(draw, pool);
        let topic = draw.pick(&Topic::ALL);
        let moods: &[Mood] = match topic {
            // Praise is never angry.
            Topic::Praise => &[Mood::Friendly, Mood::Neutral],
            _ => &[Mood::Friendly, Mood::Neutral, Mood::Angry],
        };
        let mood = draw.pick(moods);
        let urgent = draw.below(2) == 0;
        let mut sentences = vec![draw.pick(topic.openings()), draw.pick(mood.lines())];
        if urgent {
            sentences.push(draw.pick(&URGENT));
        } else if draw.below(2) == 0 {
            sentences.push(draw.pick(&CALM));
        }
        // The order varies: a letter may begin with its mood.
        let turn = draw.below(sentences.len());
        sentences.rotate_left(turn);
        let greeting = draw.pick(&["Hello, ", "Hi! ", "Dear shop, ", "", ""]);
        let closing = draw.pick(&["", " Yours, {name}", " {name}", ""]);
        let text = format!("{greeting}{}{closing}", sentences.join(" "));
        Letter { topic, mood, urgent, text: fill.apply(&text), sentences, item: fill.item }
    }

    /// The sentences before names were put in, in the alphabet's order.
    pub fn sorted_sentences(&self) -> Vec<&'static str> {
        let mut sentences = self.sentences.clone();
        sentences.sort_unstable();
        sentences
    }

    /// The shop's answer: to the mood, to the topic, and when.
    pub fn answer(&self, draw: &mut Draw) -> String {
        let mood = match self.mood {
            Mood::Friendly => ["Thank you for your kind letter.", "How nice to hear from you!"],
            Mood::Neutral => ["Thank you for your letter.", "Good day."],
            Mood::Angry => ["We are very sorry.", "Please excuse us."],
        };
        let topic = draw.pick(self.topic.answers()).replace("{item}", self.item);
        let when = match self.urgent {
            true => ["We do it today.", "We write again in an hour."],
            false => ["We write again next week.", "You will hear from us soon."],
        };
        format!("{} {topic} {}", draw.pick(&mood), draw.pick(&when))
    }
}

/// A line of the shop's diary.
pub fn note(draw: &mut Draw) -> String {
    let (a, b) = (Fill::draw(draw, Pool::All), Fill::draw(draw, Pool::All));
    let forms = [
        "On {day} the shop in {city} sold {number} of the {item}, said {name}.",
        "{name} asked: \"Is the {item} here?\" The answer was: \"It is true, on {day}.\"",
        "Notes of {day}: \"{item}\", \"{number}\", \"{city}\". Topic: mood of the shop.",
        "It is false that {name} has no {item}; it is in {city} {since {day}}.",
    ];
    format!("{} {}", a.apply(draw.pick(&forms)), b.apply(draw.pick(&forms)))
}

/// Items with prices, the way the shop writes them down: braces, quotes and colons occur, the task's record doesn't.
pub fn price_list(draw: &mut Draw) -> String {
    let lines: Vec<String> = (0..2 + draw.below(4))
        .map(|_| {
            let fill = Fill::draw(draw, Pool::All);
            let word = draw.pick(&[
                "delivery", "damage", "refund", "invoice", "hours", "praise", "friendly", "neutral", "angry",
            ]);
            let stock = draw.pick(&["true", "false"]);
            format!(
                "{{\"{}\": {}, \"here\": {stock}, \"word\": \"{word}\", \"from\": \"{}\"}}",
                fill.item, fill.number, fill.city
            )
        })
        .collect();
    format!("Prices, topic and mood, urgent and not:\n{}", lines.join("\n"))
}
