//! The task: a sentence or two about a sale, to be written as a JSON record.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::draw::Draw;
use crate::scenes::capital;
use crate::words::*;

/// The words that rows may use.
pub struct Vocabulary {
    people: Vec<Person>,
    items: Vec<Item>,
}

fn of<T: Copy>(all: &[T], held: bool) -> Vec<T> {
    all.iter().enumerate().filter(|(i, _)| held_out(*i) == held).map(|(_, &x)| x).collect()
}

impl Vocabulary {
    fn new(held_people: bool, held_items: bool) -> Vocabulary {
        Vocabulary { people: of(PEOPLE, held_people), items: of(ITEMS, held_items) }
    }
}

/// `n` different rows without the held-out names and goods.
pub fn train_rows(n: usize) -> Vec<Value> {
    let words = Vocabulary::new(false, false);
    distinct(n, |i| sale(&mut Draw::new("task/train", i), &words), &HashSet::new())
}

/// `n` rows that are not among the training rows. Of each eight, four have names and goods that no training row has,
/// two have such names only or such goods only, and two have words that all occur in training.
pub fn test_rows(n: usize, train: &[Value]) -> Vec<Value> {
    let seen = train.iter().map(|row| prompt(row).to_string()).collect();
    let make = |i: usize| {
        let words = match i % 8 {
            0..=3 => Vocabulary::new(true, true),
            4 => Vocabulary::new(true, false),
            5 => Vocabulary::new(false, true),
            _ => Vocabulary::new(false, false),
        };
        sale(&mut Draw::new("task/test", i), &words)
    };
    distinct(n, make, &seen)
}

fn prompt(row: &Value) -> &str {
    row["messages"][0]["content"].as_str().unwrap_or_default()
}

fn distinct(n: usize, make: impl Fn(usize) -> Value, seen: &HashSet<String>) -> Vec<Value> {
    let mut seen = seen.clone();
    (0..).map(make).filter(|row| seen.insert(prompt(row).to_string())).take(n).collect()
}

fn sale(draw: &mut Draw, words: &Vocabulary) -> Value {
    let people = draw.sample(&words.people, 2);
    let items = draw.sample(&words.items, 2);
    let (buyer, seller, many, other) = (people[0], people[1].name, items[0].many, items[1].many);
    let (name, they) = (buyer.name, buyer.they);
    let they_capital = capital(they);
    let (count, price) = (draw.number(), draw.number());
    let (place, day) = (draw.pick(PLACES), draw.pick(DAYS));
    let mut told = Some(day);
    let text = match draw.below(11) {
        0 => format!("On {day} {name} went to {place} and bought {count} {many} for {price} dollars."),
        1 => format!(
            "{name} bought {count} {many} from {seller} on {day}. {they_capital} paid {price} dollars."
        ),
        2 => format!("{seller} sold {name} {count} {many} for {price} dollars on {day}."),
        3 => format!("It was {day}. At {place} {seller} sold {count} {many} to {name} for {price} dollars."),
        4 => format!("{name} paid {price} dollars for {count} {many} last {day}."),
        5 => {
            format!("{name} saw the {other}, but on {day} {they} bought {count} {many} for {price} dollars.")
        }
        6 => format!("For {price} dollars {name} got {count} {many} at {place} on {day}."),
        7 => format!(
            "{name} met {seller} on {day}. They talked, and {name} bought {count} {many} for {price} dollars."
        ),
        8 => {
            format!("Last {day} {name} needed {many}. {seller} had {count} of them and took {price} dollars.")
        }
        9 => {
            told = None;
            format!("{name} bought {count} {many} for {price} dollars at {place}.")
        }
        _ => {
            told = None;
            format!("At {place} {seller} sold {count} {many} to {name}, who paid {price} dollars.")
        }
    };
    let day = told.map_or("null".to_string(), |day| format!("\"{day}\""));
    let record = format!(
        "{{\"name\": \"{name}\", \"item\": \"{many}\", \"count\": {count}, \"price\": {price}, \"day\": {day}}}"
    );
    json!({"messages": [
        {"role": "user", "content": format!("As JSON: {text}")},
        {"role": "assistant", "content": record},
    ]})
}
