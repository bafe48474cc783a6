//! TensorBoard event files, with the tags that Hugging Face's trainer uses.
//!
//! A file is a sequence of TFRecords: the length (u64, little-endian), its masked CRC-32C, the bytes, their masked CRC-32C.
//! Each record is an `Event` protobuf; the few fields needed are encoded by hand. Sources: tensorflow's
//! `core/lib/io/record_writer.h`, `core/util/event.proto`, `core/framework/summary.proto`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{LogEntry, ReportError};

/// An open event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new event file in `folder` (made if it is missing), named by time, process and a counter. A resumed run
    /// gives the step it goes on from: TensorBoard then drops what earlier files say about later steps.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(folder: &Path, resume_step: Option<u64>) -> Result<Self, ReportError> {
        std::fs::create_dir_all(folder).map_err(ReportError::io(folder, "make the folder"))?;
        let now = wall_time();
        let mut number = 0;
        let (path, file) = loop {
            let name = format!("events.out.tfevents.{}.loratune.{}.{number}", now as u64, std::process::id());
            let path = folder.join(name);
            match File::create_new(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(ReportError::io(&path, "write")(e)),
            }
        };
        let mut writer = EventWriter { path, file };
        let mut version = event(now, 0);
        put_bytes(&mut version, 3, b"brain.Event:2");
        writer.write(&version)?;
        if let Some(step) = resume_step {
            // SessionLog with status START = 1: "whatever came with a step from here on is void".
            let mut start = event(now, step + 1);
            put_bytes(&mut start, 7, &[0x08, 0x01]);
            writer.write(&start)?;
        }
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Logs every value of an entry: `train/loss`, `train/grad_norm`, `train/learning_rate`, `eval/loss`, …, `train/epoch`.
    ///
    /// # Errors
    /// The file system's.
    pub fn log(&mut self, entry: &LogEntry) -> Result<(), ReportError> {
        let now = wall_time();
        for (name, value) in entry.values() {
            let tag = match name.strip_prefix("eval_") {
                Some(name) => format!("eval/{name}"),
                None => format!("train/{name}"),
            };
            self.scalar(&tag, entry.step, value, now)?;
        }
        self.scalar("train/epoch", entry.step, entry.epoch, now)
    }

    /// Logs one number (kept as f32, as TensorBoard does). `wall_time` is in seconds since 1970.
    ///
    /// # Errors
    /// The file system's.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64, wall_time: f64) -> Result<(), ReportError> {
        let mut record = event(wall_time, step);
        put_bytes(&mut record, 5, &summary_scalar(tag, value as f32));
        self.write(&record)
    }

    /// Logs a text (Markdown) for the TEXT tab, such as the run's configuration.
    ///
    /// # Errors
    /// The file system's.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) -> Result<(), ReportError> {
        let mut record = event(wall_time(), step);
        put_bytes(&mut record, 5, &summary_text(tag, text));
        self.write(&record)
    }

    fn write(&mut self, event: &[u8]) -> Result<(), ReportError> {
        // One write per record: a killed run leaves at most one cut record, which readers skip.
        let written = self.file.write_all(&record(event)).and_then(|()| self.file.flush());
        written.map_err(ReportError::io(&self.path, "write"))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// An `Event` with its wall time (1: double) and step (2: int64).
fn event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut out = vec![0x09];
    out.extend(wall_time.to_le_bytes());
    if step > 0 {
        out.push(0x10);
        put_varint(&mut out, step);
    }
    out
}

/// A `Summary` with one `Value` (1): tag (1) and simple_value (2: float).
fn summary_scalar(tag: &str, value: f32) -> Vec<u8> {
    let mut inner = Vec::new();
    put_bytes(&mut inner, 1, tag.as_bytes());
    inner.push(0x15);
    inner.extend(value.to_le_bytes());
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &inner);
    out
}

/// A `Summary` with one `Value`: tag, tensor (8) of one string, metadata (9) naming the text plugin.
fn summary_text(tag: &str, text: &str) -> Vec<u8> {
    let mut tensor = vec![0x08, 7]; // dtype = DT_STRING
    put_bytes(&mut tensor, 2, &[0x12, 0x02, 0x08, 0x01]); // tensor_shape { dim { size: 1 } }
    put_bytes(&mut tensor, 8, text.as_bytes());
    let mut plugin = Vec::new();
    put_bytes(&mut plugin, 1, b"text");
    let mut metadata = Vec::new();
    put_bytes(&mut metadata, 1, &plugin);
    let mut inner = Vec::new();
    put_bytes(&mut inner, 1, tag.as_bytes());
    put_bytes(&mut inner, 8, &tensor);
    put_bytes(&mut inner, 9, &metadata);
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &inner);
    out
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A length-delimited protobuf field.
fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82f63b78.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !data.iter().fold(!0u32, |crc, byte| crc >> 8 ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnolis() {
        // Check values of RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn a_scalar_event_has_the_bytes_that_tensorboard_writes() {
        // From tensorboard 2.21: Event(wall_time=1.5, step=300, summary={value: {tag: "train/loss", simple_value: 2.25}}).
        let want: Vec<u8> = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0xac, 0x02, 0x2a, 0x13, 0x0a, 0x11, 0x0a, 0x0a][..],
            b"train/loss",
            &[0x15, 0, 0, 0x10, 0x40],
        ]
        .concat();
        let mut got = event(1.5, 300);
        put_bytes(&mut got, 5, &summary_scalar("train/loss", 2.25));
        assert_eq!(got, want);
    }
}
