//! `training_loss.svg` and `training_loss.png`: raw and smoothed training loss and the evaluation losses over the steps; and, as
//! LLaMA-Factory has them, `training_eval_loss.png` and `training_eval_accuracy.png`, each raw and smoothed.

mod axis;
mod canvas;

use std::path::{Path, PathBuf};

use axis::{Axis, tick_label, ticks};
use canvas::{Anchor, Canvas, Ink, Label, ink, text_width};

use super::{LogEntry, LogKind, ReportError, write_whole};

const WIDTH: u32 = 1200;
const HEIGHT: u32 = 700;
/// Left edge of the plot; further right where the labels of the losses are long.
const LEFT: f32 = 92.0;
const RIGHT: f32 = 1164.0;
const TOP: f32 = 104.0;
const BOTTOM: f32 = 618.0;

const TITLE: Ink = ink(0x1b2330);
const TEXT: Ink = ink(0x4a5464);
const GRID: Ink = ink(0xe4e8ee);
const FRAME: Ink = ink(0x9aa4b2);
const TRAIN: Ink = ink(0x2563b8);
const EVAL: Ink = ink(0xd9622b);
const BROKEN: Ink = ink(0xc4203a);

/// More non-finite steps than this are drawn as their first ones: they already fill the plot.
const MOST_MARKS: usize = 200;

/// The words of a picture: of its first curve, and of its axis.
struct Words {
    curve: &'static str,
    axis: &'static str,
}

const LOSS: Words = Words { curve: "training loss", axis: "loss (nats per token)" };

/// A metric of evaluations, and the words of its picture.
const OF_EVALUATIONS: [(&str, Words); 2] = [
    ("eval_loss", Words { curve: "evaluation loss", axis: "loss (nats per token)" }),
    ("eval_accuracy", Words { curve: "evaluation accuracy", axis: "share of right tokens" }),
];

/// Draws all files into `folder` and returns their paths; none of what the log does not hold.
///
/// # Errors
/// The file system's.
pub fn save(folder: &Path, log: &[LogEntry], title: &str) -> Result<Vec<PathBuf>, ReportError> {
    let Some(canvas) = draw(log, title) else { return Ok(Vec::new()) };
    let png = canvas.to_png().ok_or_else(|| ReportError::Draw("the picture could not be encoded".into()))?;
    let paths = [folder.join("training_loss.svg"), folder.join("training_loss.png")];
    write_whole(&paths[0], canvas.to_svg().as_bytes())?;
    write_whole(&paths[1], &png)?;
    let mut paths = paths.to_vec();
    for (metric, words) in &OF_EVALUATIONS {
        let value = |e: &LogEntry| e.values().into_iter().find(|(name, _)| name == metric);
        let curve: Curve = log.iter().filter_map(|e| Some((e.step as f64, value(e)?.1))).collect();
        let Some(png) = draw_curves(&curve, &Vec::new(), title, words).and_then(|c| c.to_png()) else {
            continue;
        };
        let path = folder.join(format!("training_{metric}.png"));
        write_whole(&path, &png)?;
        paths.push(path);
    }
    Ok(paths)
}

/// The plot as SVG text, or `None` if the log holds no loss.
pub fn to_svg(log: &[LogEntry], title: &str) -> Option<String> {
    draw(log, title).map(|canvas| canvas.to_svg())
}

/// The plot as the bytes of a PNG file, or `None` if the log holds no loss.
pub fn to_png(log: &[LogEntry], title: &str) -> Option<Vec<u8>> {
    draw(log, title).and_then(|canvas| canvas.to_png())
}

/// Points of one curve: step and loss, non-finite losses included.
type Curve = Vec<(f64, f64)>;

/// LLaMA-Factory's smoothing: an exponential mean whose weight grows with the number of points n,
/// `w = 1.8·(1/(1+e^(−0.05·n)) − 0.5)`, `s_t = w·s_(t−1) + (1−w)·x_t`. Non-finite points stay gaps.
pub fn smooth(values: &[f64]) -> Vec<f64> {
    let n = values.len() as f64;
    let weight = 1.8 * (1.0 / (1.0 + (-0.05 * n).exp()) - 0.5);
    let mut last = None;
    let step = |x: &f64| {
        if !x.is_finite() {
            return f64::NAN;
        }
        let s = last.map_or(*x, |s: f64| weight * s + (1.0 - weight) * x);
        last = Some(s);
        s
    };
    values.iter().map(step).collect()
}

fn draw(log: &[LogEntry], title: &str) -> Option<Canvas> {
    let curve = |pick: fn(&LogKind) -> Option<f64>| -> Curve {
        log.iter().filter_map(|e| pick(&e.kind).map(|loss| (e.step as f64, loss))).collect()
    };
    let train = curve(|kind| if let LogKind::Train { loss, .. } = kind { Some(*loss) } else { None });
    let eval = curve(|kind| if let LogKind::Eval { loss, .. } = kind { Some(*loss) } else { None });
    draw_curves(&train, &eval, title, &LOSS)
}

/// One curve with its smoothed course, and evaluations beside it; `None` if there is nothing to see.
fn draw_curves(train: &Curve, eval: &Curve, title: &str, words: &Words) -> Option<Canvas> {
    if train.is_empty() && eval.is_empty() {
        return None;
    }
    let (x, y) = ranges(train, eval);
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    canvas.rect(0.0, 0.0, WIDTH as f32, HEIGHT as f32, ink(0xffffff));
    let steps: Vec<f64> = train.iter().map(|p| p.0).collect();
    let values: Vec<f64> = train.iter().map(|p| p.1).collect();
    let smoothed: Curve = steps.into_iter().zip(smooth(&values)).collect();
    let broken: Vec<f64> = train.iter().chain(eval).filter(|p| !p.1.is_finite()).map(|p| p.0).collect();
    grid(&mut canvas, &x, &y, words.axis);
    header(&mut canvas, title, words.curve, x.start, [train.len(), eval.len(), broken.len()]);
    for step in broken.iter().take(MOST_MARKS) {
        let at = x.pixel(*step);
        canvas.dashed(vec![(at, TOP), (at, BOTTOM)], 1.5, 5.0, BROKEN.faded(0.75));
    }
    lines(&mut canvas, train, &x, &y, 1.5, TRAIN.faded(0.38));
    // A single point has no course to smooth.
    if train.len() > 1 {
        lines(&mut canvas, &smoothed, &x, &y, 3.0, TRAIN);
    }
    lines(&mut canvas, eval, &x, &y, 2.0, EVAL);
    // Rings that touch each other would hide the line.
    if eval.len() <= 100 {
        for (step, loss) in eval.iter().filter(|p| p.1.is_finite()) {
            let at = (x.pixel(*step), y.pixel(*loss));
            canvas.dot(at, 6.5, ink(0xffffff));
            canvas.dot(at, 5.0, EVAL);
        }
    }
    Some(canvas)
}

/// Axes that show every finite point with a margin.
fn ranges(train: &Curve, eval: &Curve) -> (Axis, Axis) {
    let points = || train.iter().chain(eval);
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (first, last) = bounds(&mut points().map(|p| p.0));
    let (first, last) = if last > first { (first, last) } else { (first - 1.0, first + 1.0) };
    let margin = (last - first) * 0.015;
    let mut x = Axis { low: first - margin, high: last + margin, start: LEFT, end: RIGHT };
    // f32 pixels and their division need room below f64's limits.
    let (low, high) = bounds(&mut points().map(|p| p.1).filter(|v| v.is_finite() && v.abs() < 1e300));
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let spread = high - low;
    // A constant loss gets a range of its own size, so that its one value has a readable label.
    let margin = if spread > low.abs() * 1e-9 { spread * 0.06 } else { (low.abs() * 0.1).max(0.05) };
    let bottom = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin };
    let y = Axis { low: bottom, high: high + margin, start: BOTTOM, end: TOP };
    let widest = y_labels(&y).iter().map(|(_, text)| text_width(text, 17.0, false)).fold(0.0, f32::max);
    x.start = LEFT.max(56.0 + widest);
    (x, y)
}

fn y_labels(y: &Axis) -> Vec<(f64, String)> {
    let (values, decimals) = ticks(y.low, y.high, 7, 0.0);
    values.into_iter().map(|value| (value, tick_label(value, decimals))).collect()
}

fn label(at: (f32, f32), text: impl Into<String>, size: f32, anchor: Anchor) -> Label {
    Label { at, text: text.into(), size, bold: false, anchor, upwards: false, ink: TEXT }
}

fn grid(canvas: &mut Canvas, x: &Axis, y: &Axis, axis: &str) {
    let left = x.start;
    for (value, text) in y_labels(y) {
        let at = y.pixel(value);
        canvas.line(vec![(left, at), (RIGHT, at)], 1.0, GRID);
        canvas.text(label((left - 12.0, at + 6.0), text, 17.0, Anchor::End));
    }
    // Steps are whole numbers from 0 on.
    let (values, decimals) = ticks(x.low.max(0.0), x.high, 9, 1.0);
    for value in values {
        let at = x.pixel(value);
        canvas.line(vec![(at, BOTTOM), (at, BOTTOM + 6.0)], 1.0, FRAME);
        canvas.text(label((at, BOTTOM + 27.0), tick_label(value, decimals), 17.0, Anchor::Middle));
    }
    canvas.line(vec![(left, BOTTOM), (RIGHT, BOTTOM)], 1.2, FRAME);
    canvas.text(label(((left + RIGHT) / 2.0, HEIGHT as f32 - 22.0), "optimiser step", 18.0, Anchor::Middle));
    let mut title = label((30.0, (TOP + BOTTOM) / 2.0), axis, 18.0, Anchor::Middle);
    title.upwards = true;
    canvas.text(title);
}

/// Title on the left, legend below it; `counts` are the training, evaluation and non-finite points.
fn header(canvas: &mut Canvas, title: &str, curve: &str, left: f32, [train, eval, broken]: [usize; 3]) {
    let mut text: String = title.chars().filter(|c| !c.is_control()).collect();
    while text_width(&text, 26.0, true) > RIGHT - left && text.chars().count() > 2 {
        text = text.chars().take(text.chars().count().saturating_sub(2)).chain(['…']).collect();
    }
    let headline =
        Label { size: 26.0, bold: true, ink: TITLE, ..label((left, 44.0), text, 26.0, Anchor::Start) };
    canvas.text(headline);
    let mut at = left;
    let y = 76.0;
    let mut key = |canvas: &mut Canvas, name: &str, draw: &dyn Fn(&mut Canvas, f32)| {
        draw(canvas, at);
        canvas.text(label((at + 38.0, y + 6.0), name, 17.0, Anchor::Start));
        at += 38.0 + text_width(name, 17.0, false) + 34.0;
    };
    let swatch =
        |width: f32, ink: Ink| move |c: &mut Canvas, x: f32| c.line(vec![(x, y), (x + 28.0, y)], width, ink);
    if train > 0 {
        key(canvas, curve, &swatch(2.0, TRAIN.faded(0.45)));
    }
    if train > 1 {
        key(canvas, "smoothed", &swatch(3.5, TRAIN));
    }
    if eval > 0 {
        key(canvas, "evaluation loss", &|c: &mut Canvas, x: f32| {
            swatch(2.0, EVAL)(c, x);
            c.dot((x + 14.0, y), 5.0, EVAL);
        });
    }
    if broken > 0 {
        let dashed = |c: &mut Canvas, x: f32| c.dashed(vec![(x, y), (x + 28.0, y)], 2.0, 5.0, BROKEN);
        key(canvas, &format!("not finite ({broken})"), &dashed);
    }
}

/// The curve between its gaps; a point between two gaps becomes a dot.
fn lines(canvas: &mut Canvas, curve: &Curve, x: &Axis, y: &Axis, width: f32, ink: Ink) {
    for run in curve.split(|p| !p.1.is_finite()).filter(|run| !run.is_empty()) {
        let pixels: Vec<(f32, f32)> =
            run.iter().map(|(step, loss)| (x.pixel(*step), y.pixel(*loss))).collect();
        match pixels.as_slice() {
            [one] => canvas.dot(*one, width.max(2.0) + 1.5, ink.faded(1.0)),
            many => canvas.line(thin_out(many), width, ink),
        }
    }
}

/// At most four points per column of half a pixel: the first, lowest, highest and last, so that no spike is lost.
fn thin_out(points: &[(f32, f32)]) -> Vec<(f32, f32)> {
    if points.len() < 2 * WIDTH as usize {
        return points.to_vec();
    }
    let mut out = Vec::new();
    for column in points.chunk_by(|a, b| (a.0 * 2.0).floor() == (b.0 * 2.0).floor()) {
        let by_y = |a: &&(usize, f32), b: &&(usize, f32)| a.1.total_cmp(&b.1);
        let heights: Vec<(usize, f32)> = column.iter().map(|p| p.1).enumerate().collect();
        let (low, high) = (heights.iter().min_by(by_y), heights.iter().max_by(by_y));
        let mut keep = vec![0, low.map_or(0, |p| p.0), high.map_or(0, |p| p.0), column.len() - 1];
        keep.sort_unstable();
        keep.dedup();
        out.extend(keep.into_iter().filter_map(|i| column.get(i)));
    }
    out
}
