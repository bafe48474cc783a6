//! Metadata values.

/// A number type of GGUF's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalarKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl ScalarKind {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => ScalarKind::U8,
            1 => ScalarKind::I8,
            2 => ScalarKind::U16,
            3 => ScalarKind::I16,
            4 => ScalarKind::U32,
            5 => ScalarKind::I32,
            6 => ScalarKind::F32,
            7 => ScalarKind::Bool,
            10 => ScalarKind::U64,
            11 => ScalarKind::I64,
            12 => ScalarKind::F64,
            _ => return None,
        })
    }

    pub(crate) fn size(self) -> usize {
        match self {
            ScalarKind::U8 | ScalarKind::I8 | ScalarKind::Bool => 1,
            ScalarKind::U16 | ScalarKind::I16 => 2,
            ScalarKind::U32 | ScalarKind::I32 | ScalarKind::F32 => 4,
            ScalarKind::U64 | ScalarKind::I64 | ScalarKind::F64 => 8,
        }
    }

    /// A value from exactly [`Self::size`] little-endian bytes.
    pub(crate) fn read(self, bytes: &[u8]) -> MetaValue {
        let mut wide = [0u8; 8];
        let n = bytes.len().min(8);
        wide[..n].copy_from_slice(&bytes[..n]);
        let unsigned = u64::from_le_bytes(wide);
        // Sign extension by way of the top bits.
        let unused = 64 - 8 * self.size() as u32;
        let signed = ((unsigned << unused) as i64) >> unused;
        match self {
            ScalarKind::U8 | ScalarKind::U16 | ScalarKind::U32 | ScalarKind::U64 => {
                MetaValue::Unsigned(unsigned)
            }
            ScalarKind::I8 | ScalarKind::I16 | ScalarKind::I32 | ScalarKind::I64 => MetaValue::Signed(signed),
            ScalarKind::F32 => MetaValue::Float(f64::from(f32::from_bits(unsigned as u32))),
            ScalarKind::F64 => MetaValue::Float(f64::from_bits(unsigned)),
            ScalarKind::Bool => MetaValue::Bool(unsigned != 0),
        }
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of numbers, as the file has them.
    Scalars(ScalarKind, Vec<u8>),
    /// An array of arrays.
    Array(Vec<MetaValue>),
}

impl MetaValue {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            MetaValue::Unsigned(_) | MetaValue::Signed(_) => "a whole number",
            MetaValue::Float(_) => "a number",
            MetaValue::Bool(_) => "a truth value",
            MetaValue::String(_) => "a string",
            MetaValue::Strings(_) => "an array of strings",
            MetaValue::Scalars(..) => "an array of numbers",
            MetaValue::Array(_) => "an array of arrays",
        }
    }

    /// A whole number from 0 on.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            MetaValue::Unsigned(n) => Some(*n),
            MetaValue::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Any number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            MetaValue::Float(x) => Some(*x),
            MetaValue::Unsigned(n) => Some(*n as f64),
            MetaValue::Signed(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let MetaValue::Bool(b) = self { Some(*b) } else { None }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        if let MetaValue::String(s) = self { Some(s) } else { None }
    }

    /// An array of strings (any empty array counts).
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            MetaValue::Strings(list) => Some(list),
            MetaValue::Scalars(_, bytes) if bytes.is_empty() => Some(&[]),
            _ => None,
        }
    }

    /// An array of numbers, one by one.
    pub fn scalars(&self) -> Option<impl Iterator<Item = MetaValue> + '_> {
        match self {
            MetaValue::Scalars(kind, bytes) => {
                Some(bytes.chunks_exact(kind.size()).map(|chunk| kind.read(chunk)))
            }
            _ => None,
        }
    }
}
