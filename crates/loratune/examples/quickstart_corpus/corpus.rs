//! The rows that the base model is trained on: stories as plain text, chats about a story, and small exercises.

use serde_json::{Value, json};

use crate::draw::Draw;
use crate::scenes::{Cast, MOST_SCENES, Scene, scene};
use crate::words::*;

/// Row `index` of the corpus.
pub fn row(index: usize) -> Value {
    let mut draw = Draw::new("corpus", index);
    match draw.below(20) {
        0 | 1 => json!({"text": story(&mut draw)}),
        2..=5 => json!({"text": song(&mut draw)}),
        6..=10 => exercises(&mut draw),
        _ => chat(&mut draw),
    }
}

fn scenes(draw: &mut Draw, most: usize) -> Vec<Scene> {
    let mut cast = Cast::new(draw);
    (0..draw.between(1, most)).map(|_| scene(draw, &mut cast)).collect()
}

fn telling(scenes: &[Scene]) -> String {
    scenes.iter().map(|s| s.text.as_str()).collect::<Vec<_>>().join(" ")
}

fn story(draw: &mut Draw) -> String {
    telling(&scenes(draw, MOST_SCENES))
}

/// Words without sense, sung two to four times. From such rows a model learns early to look back and copy; most have
/// nothing between the words, because "what came after this word last time" is what has to be found first.
fn song(draw: &mut Draw) -> String {
    let between = draw.pick(&[" ", " ", " ", ", "]);
    let verse = words(draw, 6, 20).join(between);
    let times = draw.between(2, 4);
    format!("{} sang: {}.", draw.pick(PEOPLE).name, vec![verse; times].join(between))
}

/// A story and several questions about it, of which the first comes with the story.
fn chat(draw: &mut Draw) -> Value {
    let most = draw.pick(&[1, 2, 3]);
    let scenes = scenes(draw, most);
    let facts: Vec<_> = scenes.iter().flat_map(|s| &s.facts).collect();
    let asked = facts.len().min(draw.between(3, 7));
    let order: Vec<usize> = (0..facts.len()).collect();
    let turns = draw.sample(&order, asked).into_iter().enumerate().map(|(turn, i)| {
        let question = match turn {
            0 => format!("{} {}", telling(&scenes), facts[i].question),
            _ => facts[i].question.clone(),
        };
        (question, facts[i].answer.clone())
    });
    messages(turns)
}

fn exercises(draw: &mut Draw) -> Value {
    let turns: Vec<_> = (0..draw.between(2, 4)).map(|_| exercise(draw)).collect();
    messages(turns.into_iter())
}

fn messages(turns: impl Iterator<Item = (String, String)>) -> Value {
    let both = turns.flat_map(|(user, assistant)| {
        [json!({"role": "user", "content": user}), json!({"role": "assistant", "content": assistant})]
    });
    json!({"messages": both.collect::<Vec<_>>()})
}

/// Different words of one kind, or of all kinds. Long rows of words without sense are what copying is learned from.
fn words(draw: &mut Draw, least: usize, most: usize) -> Vec<&'static str> {
    let n = draw.between(least, most);
    let people = || PEOPLE.iter().map(|p| p.name);
    let items = || ITEMS.iter().map(|i| i.many);
    let pool: Vec<&str> = match draw.below(4) {
        0 => people().collect(),
        1 => items().collect(),
        2 => [DAYS, COLOURS, JOBS, ANIMALS, FEELINGS].concat(),
        _ => people().chain(items()).chain(PLACES.iter().copied()).chain(PETS.iter().copied()).collect(),
    };
    draw.sample(&pool, n)
}

/// A request that needs no story: to repeat, quote, order or number something.
fn exercise(draw: &mut Draw) -> (String, String) {
    let most = draw.pick(&[3, 6, 10]);
    let words = words(draw, 1, most);
    let each = |left: &str, right: &str| {
        words.iter().map(|w| format!("{left}{w}{right}")).collect::<Vec<_>>().join(", ")
    };
    let row = words.join(", ");
    match draw.below(12) {
        0 => (format!("Repeat: {row}"), row),
        1 | 2 => (format!("Repeat: {}", words.join(" ")), words.join(" ")),
        3 => {
            let text = story_line(draw);
            (format!("Say it again: {text}"), text)
        }
        4 => (format!("Put each in quotes: {row}"), each("\"", "\"")),
        5 => (format!("Take the quotes away: {}", each("\"", "\"")), row),
        6 => (format!("Write as a set: {row}"), format!("{{{row}}}")),
        7 => (format!("Put each in brackets: {row}"), each("(", ")")),
        8 => {
            let numbered: Vec<_> = words.iter().enumerate().map(|(i, w)| format!("{}: {w}", i + 1)).collect();
            (format!("Number the list: {row}"), numbered.join("; "))
        }
        9 => {
            let priced: Vec<_> = words.iter().map(|&w| (w, draw.number())).collect();
            let list = |between: &str| {
                priced.iter().map(|(w, n)| format!("{w}{between}{n}")).collect::<Vec<_>>().join("; ")
            };
            (format!("Write with colons: {}", list(" ")), list(": "))
        }
        10 => {
            let day = draw.below(DAYS.len());
            (format!("Which day comes after {}?", DAYS[day]), format!("{}.", DAYS[(day + 1) % DAYS.len()]))
        }
        _ => {
            let (name, day) = (draw.pick(PEOPLE).name, draw.pick(DAYS));
            (
                format!("Hello! I am {name}. Today is {day}."),
                format!("Hello {name}! I hope you have a good {day}."),
            )
        }
    }
}

fn story_line(draw: &mut Draw) -> String {
    let mut cast = Cast::new(draw);
    scene(draw, &mut cast).text
}
