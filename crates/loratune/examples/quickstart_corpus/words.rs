//! The words of the small world.

/// A person, and the pronoun that goes with the name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Person {
    pub name: &'static str,
    /// "she" or "he".
    pub they: &'static str,
}

const fn she(name: &'static str) -> Person {
    Person { name, they: "she" }
}

const fn he(name: &'static str) -> Person {
    Person { name, they: "he" }
}

/// Everyone who lives there. A quarter of them never occur in the task's training rows ([`held_out`]).
pub const PEOPLE: &[Person] = &[
    she("Mia"),
    he("Tom"),
    she("Ana"),
    he("Leo"),
    she("Ida"),
    he("Max"),
    she("Nora"),
    he("Ben"),
    she("Zoe"),
    he("Sam"),
    she("Lena"),
    he("Paul"),
    she("Ruth"),
    he("Jack"),
    she("Ella"),
    he("Finn"),
    she("Rosa"),
    he("Hugo"),
    she("Iris"),
    he("Otto"),
    she("Clara"),
    he("Emil"),
    she("Lucy"),
    he("Adam"),
    she("Maya"),
    he("Theo"),
    she("Vera"),
    he("Noah"),
    she("Jane"),
    he("Carl"),
    she("Alma"),
    he("Luke"),
    she("Nina"),
    he("Oscar"),
    she("Eva"),
    he("Felix"),
    she("Tess"),
    he("Milo"),
    she("June"),
    he("Ivan"),
    she("Sara"),
    he("Kurt"),
    she("Anna"),
    he("Liam"),
    she("Olga"),
    he("Hans"),
    she("Lily"),
    he("Mark"),
    she("Dora"),
    he("Owen"),
    she("Gina"),
    he("Ralph"),
    she("Pia"),
    he("Erik"),
    she("Joan"),
    he("Karl"),
];

/// A thing that can be counted, sold and given away: one of it, several of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Item {
    pub one: &'static str,
    pub many: &'static str,
}

macro_rules! items {
    ($($one:literal $many:literal),+ $(,)?) => { &[$(Item { one: $one, many: $many }),+] };
}

/// All goods. A quarter of them never occur in the task's training rows ([`held_out`]).
pub const ITEMS: &[Item] = items![
    "pear" "pears", "apple" "apples", "plum" "plums", "fig" "figs",
    "lemon" "lemons", "melon" "melons", "peach" "peaches", "orange" "oranges",
    "carrot" "carrots", "onion" "onions", "bean" "beans", "pepper" "peppers",
    "roll" "rolls", "cake" "cakes", "pie" "pies", "bun" "buns",
    "loaf" "loaves", "egg" "eggs", "nut" "nuts", "cookie" "cookies",
    "candle" "candles", "basket" "baskets", "lamp" "lamps", "rope" "ropes",
    "hat" "hats", "scarf" "scarves", "glove" "gloves", "boot" "boots",
    "coat" "coats", "shirt" "shirts", "belt" "belts", "button" "buttons",
    "cup" "cups", "bowl" "bowls", "spoon" "spoons", "plate" "plates",
    "knife" "knives", "jar" "jars", "bottle" "bottles", "box" "boxes",
    "kite" "kites", "book" "books", "map" "maps", "pen" "pens",
    "bell" "bells", "key" "keys", "brush" "brushes", "blanket" "blankets",
    "ball" "balls", "drum" "drums", "flute" "flutes", "stamp" "stamps",
    "rose" "roses", "tulip" "tulips", "seed" "seeds", "stone" "stones",
    "nail" "nails", "hammer" "hammers", "chair" "chairs", "table" "tables",
];

/// Where people go, work and trade.
pub const PLACES: &[&str] = &[
    "the harbour market",
    "the old market",
    "the village shop",
    "the corner shop",
    "the farm",
    "the mill",
    "the bakery",
    "the station",
    "the library",
    "the school",
    "the park",
    "the garden",
    "the bridge",
    "the inn",
    "the church",
    "the museum",
    "the castle",
    "the beach",
    "the river",
    "the town square",
];

pub const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
pub const TIMES: &[&str] = &["morning", "afternoon", "evening"];
pub const COLOURS: &[&str] = &["red", "blue", "green", "yellow", "white", "black", "brown", "grey"];
pub const WEATHER: &[&str] = &["cold", "warm", "sunny", "windy", "wet", "dry", "grey", "bright"];
pub const JOBS: &[&str] =
    &["baker", "farmer", "sailor", "teacher", "tailor", "painter", "doctor", "driver", "cook", "potter"];
pub const ANIMALS: &[&str] = &["dog", "cat", "hen", "goat", "horse", "duck", "sheep", "donkey"];
pub const PETS: &[&str] =
    &["Pip", "Dot", "Rex", "Bella", "Coco", "Misty", "Sunny", "Toby", "Ginger", "Pepper"];
pub const FEELINGS: &[&str] = &["happy", "tired", "glad", "hungry", "proud", "late", "quiet", "busy"];

/// Whether the word with this index is kept out of the task's training rows.
pub fn held_out(index: usize) -> bool {
    // People alternate between she and he: one of each.
    matches!(index % 8, 3 | 6)
}
