//! The number formats that tensors have in files.

/// How a tensor's numbers are stored. The Q types are GGUF's blocks of quantised numbers along the last dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileDType {
    F64,
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

/// Name in GGUF, type number in GGUF, numbers per block, bytes per block (ggml.h).
type Row = (FileDType, &'static str, u32, usize, usize);

const TABLE: &[Row] = &[
    (FileDType::F64, "F64", 28, 1, 8),
    (FileDType::F32, "F32", 0, 1, 4),
    (FileDType::F16, "F16", 1, 1, 2),
    (FileDType::BF16, "BF16", 30, 1, 2),
    (FileDType::Q8_0, "Q8_0", 8, 32, 34),
    (FileDType::Q4_0, "Q4_0", 2, 32, 18),
    (FileDType::Q4_1, "Q4_1", 3, 32, 20),
    (FileDType::Q5_0, "Q5_0", 6, 32, 22),
    (FileDType::Q5_1, "Q5_1", 7, 32, 24),
    (FileDType::Q4K, "Q4_K", 12, 256, 144),
    (FileDType::Q5K, "Q5_K", 13, 256, 176),
    (FileDType::Q6K, "Q6_K", 14, 256, 210),
];

/// Names of GGUF types that aren't read, for messages.
const OTHER_GGUF: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl FileDType {
    fn row(self) -> &'static Row {
        // Every variant has a row (a test walks them); F64's stands in so that there is no panic to reason about.
        TABLE.iter().find(|r| r.0 == self).unwrap_or(&TABLE[0])
    }

    /// The name, as safetensors and GGUF spell it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// GGUF's number of this type.
    pub(crate) fn gguf_number(self) -> u32 {
        self.row().2
    }

    /// How many numbers share a block (1 for plain formats).
    pub fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Is it one of GGUF's block formats?
    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes that a tensor of this shape takes; `None` when that overflows or the last dimension is not whole blocks.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let last = shape.last().copied().unwrap_or(1);
        if !last.is_multiple_of(self.block_len()) {
            return None;
        }
        (count / self.block_len()).checked_mul(self.block_bytes())
    }

    /// From safetensors' name; `None` for formats that aren't weights here (integers, booleans, fp8 …).
    pub(crate) fn from_safetensors(name: &str) -> Option<Self> {
        TABLE.iter().find(|r| r.1 == name && r.3 == 1).map(|r| r.0)
    }

    /// From GGUF's type number, or that type's name for the message.
    pub(crate) fn from_gguf(number: u32) -> std::result::Result<Self, String> {
        TABLE.iter().find(|r| r.2 == number).map(|r| r.0).ok_or_else(|| {
            let known = OTHER_GGUF.iter().find(|(n, _)| *n == number);
            known.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
        })
    }

    /// From the names that config.json's `dtype`/`torch_dtype` uses.
    pub(crate) fn from_torch(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float64" | "double" => Some(FileDType::F64),
            "float32" | "float" => Some(FileDType::F32),
            "float16" | "half" => Some(FileDType::F16),
            "bfloat16" => Some(FileDType::BF16),
            _ => None,
        }
    }
}
