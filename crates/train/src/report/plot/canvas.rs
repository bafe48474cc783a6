//! A drawing as a list of shapes, and its two forms: SVG text and PNG pixels.
//!
//! Both come from the same list, so they cannot differ. PNG text is drawn from outlines of a font inside the binary: it
//! looks the same on a machine without fonts.

use std::fmt::Write as _;

use tiny_skia::{
    Color, FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform,
};
use ttf_parser::{Face, OutlineBuilder};

/// A colour with its opacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ink {
    /// Red, green, blue.
    pub rgb: [u8; 3],
    /// From 0 (invisible) to 1.
    pub alpha: f32,
}

/// An opaque colour.
pub const fn ink(hex: u32) -> Ink {
    Ink { rgb: [(hex >> 16) as u8, (hex >> 8) as u8, hex as u8], alpha: 1.0 }
}

impl Ink {
    /// The same colour, more transparent.
    pub const fn faded(self, alpha: f32) -> Ink {
        Ink { alpha, ..self }
    }

    fn hex(self) -> String {
        let [r, g, b] = self.rgb;
        format!("#{r:02x}{g:02x}{b:02x}")
    }

    fn paint(self) -> Paint<'static> {
        let [r, g, b] = self.rgb;
        let mut paint = Paint::default();
        paint.set_color_rgba8(r, g, b, (self.alpha * 255.0).round() as u8);
        paint.anti_alias = true;
        paint
    }
}

/// Which end of a text stands at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// A text to draw.
#[derive(Debug, Clone)]
pub struct Label {
    /// Position of the anchor on the baseline, in pixels.
    pub at: (f32, f32),
    /// One line of text.
    pub text: String,
    /// Height of the font in pixels.
    pub size: f32,
    /// Bold or regular.
    pub bold: bool,
    /// Which end stands at `at`.
    pub anchor: Anchor,
    /// Turned by a quarter, reading upwards.
    pub upwards: bool,
    /// Its colour.
    pub ink: Ink,
}

#[derive(Debug, Clone)]
enum Shape {
    Rect { x: f32, y: f32, w: f32, h: f32, ink: Ink },
    Line { points: Vec<(f32, f32)>, width: f32, dash: Option<f32>, ink: Ink },
    Dot { at: (f32, f32), radius: f32, ink: Ink },
    Text(Label),
}

/// A drawing of a fixed size in pixels.
#[derive(Debug, Clone)]
pub struct Canvas {
    width: u32,
    height: u32,
    shapes: Vec<Shape>,
}

impl Canvas {
    /// An empty drawing.
    pub fn new(width: u32, height: u32) -> Self {
        Canvas { width, height, shapes: Vec::new() }
    }

    /// A filled rectangle.
    pub fn rect(&mut self, x: f32, y: f32, w: f32, h: f32, ink: Ink) {
        self.shapes.push(Shape::Rect { x, y, w, h, ink });
    }

    /// A line through the points; one point alone is not drawn.
    pub fn line(&mut self, points: Vec<(f32, f32)>, width: f32, ink: Ink) {
        self.shapes.push(Shape::Line { points, width, dash: None, ink });
    }

    /// A dashed line.
    pub fn dashed(&mut self, points: Vec<(f32, f32)>, width: f32, dash: f32, ink: Ink) {
        self.shapes.push(Shape::Line { points, width, dash: Some(dash), ink });
    }

    /// A filled circle.
    pub fn dot(&mut self, at: (f32, f32), radius: f32, ink: Ink) {
        self.shapes.push(Shape::Dot { at, radius, ink });
    }

    /// A line of text.
    pub fn text(&mut self, label: Label) {
        self.shapes.push(Shape::Text(label));
    }

    /// The drawing as an SVG document.
    pub fn to_svg(&self) -> String {
        let (w, h) = (self.width, self.height);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             font-family=\"'Noto Sans', 'Segoe UI', Helvetica, Arial, sans-serif\">\n"
        );
        for shape in &self.shapes {
            write_svg(&mut out, shape);
        }
        out.push_str("</svg>\n");
        out
    }

    /// The drawing as a PNG file. Returns `None` if the size is zero or the encoder fails.
    pub fn to_png(&self) -> Option<Vec<u8>> {
        let mut pixels = Pixmap::new(self.width, self.height)?;
        pixels.fill(Color::WHITE);
        let fonts = Fonts::new()?;
        for shape in &self.shapes {
            draw(&mut pixels, &fonts, shape);
        }
        pixels.encode_png().ok()
    }
}

fn number(x: f32) -> String {
    let text = format!("{x:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn opacity(name: &str, ink: Ink) -> String {
    if ink.alpha >= 1.0 { String::new() } else { format!(" {name}-opacity=\"{}\"", number(ink.alpha)) }
}

fn write_svg(out: &mut String, shape: &Shape) {
    let result = match shape {
        Shape::Rect { x, y, w, h, ink } => writeln!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"{}/>",
            number(*x),
            number(*y),
            number(*w),
            number(*h),
            ink.hex(),
            opacity("fill", *ink)
        ),
        Shape::Dot { at, radius, ink } => writeln!(
            out,
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{}\"{}/>",
            number(at.0),
            number(at.1),
            number(*radius),
            ink.hex(),
            opacity("fill", *ink)
        ),
        Shape::Line { points, .. } if points.len() < 2 => Ok(()),
        Shape::Line { points, width, dash, ink } => {
            let points: Vec<String> =
                points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
            let dash = dash.map_or(String::new(), |d| format!(" stroke-dasharray=\"{}\"", number(d)));
            writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\"{} stroke-width=\"{}\" stroke-linejoin=\"round\" \
                 stroke-linecap=\"round\"{dash}/>",
                points.join(" "),
                ink.hex(),
                opacity("stroke", *ink),
                number(*width)
            )
        }
        Shape::Text(label) => {
            let (x, y) = (number(label.at.0), number(label.at.1));
            let anchor = match label.anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let turn =
                if label.upwards { format!(" transform=\"rotate(-90 {x} {y})\"") } else { String::new() };
            let weight = if label.bold { " font-weight=\"bold\"" } else { "" };
            writeln!(
                out,
                "<text x=\"{x}\" y=\"{y}\" font-size=\"{}\"{weight} text-anchor=\"{anchor}\" fill=\"{}\"{turn}>{}</text>",
                number(label.size),
                label.ink.hex(),
                escape(&label.text)
            )
        }
    };
    // Writing to a String cannot fail.
    debug_assert!(result.is_ok());
}

fn escape(text: &str) -> String {
    // Control characters are not allowed in XML at all.
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The two faces of Noto Sans (SIL Open Font License).
struct Fonts {
    regular: Face<'static>,
    bold: Face<'static>,
}

impl Fonts {
    fn new() -> Option<Self> {
        Some(Fonts {
            regular: Face::parse(notosans::REGULAR_TTF, 0).ok()?,
            bold: Face::parse(notosans::BOLD_TTF, 0).ok()?,
        })
    }

    fn face(&self, bold: bool) -> &Face<'static> {
        if bold { &self.bold } else { &self.regular }
    }
}

/// Width of a text in pixels.
pub fn text_width(text: &str, size: f32, bold: bool) -> f32 {
    Fonts::new().map_or(0.0, |fonts| width_in(fonts.face(bold), text, size))
}

fn width_in(face: &Face, text: &str, size: f32) -> f32 {
    text.chars().map(|c| advance(face, c, size)).sum()
}

fn advance(face: &Face, c: char, size: f32) -> f32 {
    let glyph = face.glyph_index(c).unwrap_or_default();
    f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * size / f32::from(face.units_per_em())
}

fn draw(pixels: &mut Pixmap, fonts: &Fonts, shape: &Shape) {
    let still = Transform::identity();
    match shape {
        Shape::Rect { x, y, w, h, ink } => {
            if let Some(rect) = Rect::from_xywh(*x, *y, *w, *h) {
                pixels.fill_rect(rect, &ink.paint(), still, None);
            }
        }
        Shape::Dot { at, radius, ink } => {
            if let Some(path) = PathBuilder::from_circle(at.0, at.1, *radius) {
                pixels.fill_path(&path, &ink.paint(), FillRule::Winding, still, None);
            }
        }
        Shape::Line { points, width, dash, ink } => {
            let Some((first, rest)) = points.split_first().filter(|(_, rest)| !rest.is_empty()) else {
                return;
            };
            let mut path = PathBuilder::new();
            path.move_to(first.0, first.1);
            for point in rest {
                path.line_to(point.0, point.1);
            }
            let stroke = Stroke {
                width: *width,
                line_cap: LineCap::Round,
                line_join: LineJoin::Round,
                dash: dash.and_then(|d| StrokeDash::new(vec![d, d], 0.0)),
                ..Stroke::default()
            };
            if let Some(path) = path.finish() {
                pixels.stroke_path(&path, &ink.paint(), &stroke, still, None);
            }
        }
        Shape::Text(label) => draw_text(pixels, fonts.face(label.bold), label),
    }
}

fn draw_text(pixels: &mut Pixmap, face: &Face, label: &Label) {
    let scale = label.size / f32::from(face.units_per_em());
    let width = width_in(face, &label.text, label.size);
    let mut x = match label.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => -width / 2.0,
        Anchor::End => -width,
    };
    let mut outline = Outline { path: PathBuilder::new(), x: 0.0, scale };
    for c in label.text.chars() {
        outline.x = x;
        face.outline_glyph(face.glyph_index(c).unwrap_or_default(), &mut outline);
        x += advance(face, c, label.size);
    }
    let place = Transform::from_translate(label.at.0, label.at.1);
    let place = if label.upwards { place.pre_rotate(-90.0) } else { place };
    if let Some(path) = outline.path.finish() {
        pixels.fill_path(&path, &label.ink.paint(), FillRule::Winding, place, None);
    }
}

/// Turns a glyph's outline (font units, y up) into a path (pixels, y down).
struct Outline {
    path: PathBuilder,
    x: f32,
    scale: f32,
}

impl Outline {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.path.close();
    }
}
