//! Text for a terminal of 100 columns.

/// Columns that a report stays within.
const WIDTH: usize = 100;

/// A named paragraph, wrapped at words.
pub(crate) fn paragraph(name: &str, text: &str) -> String {
    let mut out = format!("{name:<10}");
    let mut column = 10;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column + 1 + width > WIDTH && column > 11 {
            out.push_str("\n          ");
            column = 10;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + width;
    }
    out.push('\n');
    out
}

/// Control characters as their Unicode pictures.
pub(crate) fn visible(c: char) -> char {
    match c as u32 {
        code @ 0..=0x1f => char::from_u32(0x2400 + code).unwrap_or('�'),
        0x7f => '␡',
        0x80..=0x9f | 0x200b..=0x200f | 0x2028..=0x202e | 0xfeff => '�',
        _ => c,
    }
}

/// Wrapped text with the trained stretches set apart.
pub(crate) struct Page {
    out: String,
    column: usize,
    green: bool,
    color: bool,
}

impl Page {
    const INDENT: &'static str = "  ";

    pub(crate) fn new(color: bool) -> Self {
        Self { out: String::new(), column: 0, green: false, color }
    }

    fn begin_line(&mut self) {
        if self.column == 0 {
            self.out.push_str(Self::INDENT);
            self.column = Self::INDENT.len();
            if self.color && self.green {
                self.out.push_str("\x1b[32m");
            }
        }
    }

    fn break_line(&mut self) {
        if self.color && self.green {
            self.out.push_str("\x1b[0m");
        }
        self.out.push('\n');
        self.column = 0;
    }

    /// Starts or ends a trained stretch.
    pub(crate) fn set(&mut self, trained: bool) {
        if trained == self.green {
            return;
        }
        if self.color {
            if self.column > 0 {
                self.out.push_str(if trained { "\x1b[32m" } else { "\x1b[0m" });
            }
            self.green = trained;
        } else {
            self.green = trained;
            self.put(if trained { '⟦' } else { '⟧' });
        }
    }

    fn put(&mut self, c: char) {
        // East Asian and emoji characters take two columns.
        let width = if matches!(c as u32, 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0x1f300..=0x1faff | 0x20000..=0x3fffd)
        {
            2
        } else {
            1
        };
        if self.column + width > WIDTH {
            self.break_line();
        }
        self.begin_line();
        self.out.push(c);
        self.column += width;
    }

    /// Writes text, line breaks and control characters made visible.
    pub(crate) fn write(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' {
                self.put('↵');
                self.break_line();
            } else {
                self.put(visible(c));
            }
        }
    }

    /// The finished text.
    pub(crate) fn end(mut self) -> String {
        if self.column > 0 {
            self.break_line();
        }
        self.out
    }
}
