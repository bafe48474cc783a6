//! CSV and TSV. The first record names the columns; every cell is text.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::{Body, FileRows, LazyRow, name_of};
use crate::error::{DataError, Result, RowRef};

pub(super) fn open(file: File, path: &Path, delimiter: u8) -> Result<FileRows> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let name = name_of(path);
    let headers = reader.headers().map_err(|e| broken(&name, &e))?;
    let names: Arc<[String]> =
        headers.iter().map(|n| n.trim_start_matches('\u{feff}').trim().to_string()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)).map(|(_, n)| n) {
        return Err(DataError::BrokenTable {
            file: name.to_string(),
            line: 1,
            message: format!("the column `{twice}` stands there twice"),
        });
    }
    let mut records = reader.into_records();
    let mut row = 0;
    Ok(Box::new(std::iter::from_fn(move || {
        let record = match records.next()? {
            Ok(record) => record,
            Err(e) => return Some(Err(broken(&name, &e))),
        };
        row += 1;
        // Cells may hold line breaks, and the library counts lines of files with "\r\n" one short: rows are surer.
        let source = RowRef { file: name.clone(), row, line: None };
        let cells = record.iter().map(str::to_string).collect();
        Some(Ok(LazyRow { source, body: Body::Cells(names.clone(), cells) }))
    })))
}

fn broken(name: &str, e: &csv::Error) -> DataError {
    let line = e.position().map_or(1, |p| p.line() as usize);
    let message = match e.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!(
                "{len} cells where the first line names {expected_len} columns; quote cells that hold commas"
            )
        }
        csv::ErrorKind::Utf8 { err, .. } => {
            format!("cell {} is not valid UTF-8; save the file as UTF-8", err.field() + 1)
        }
        _ => e.to_string(),
    };
    DataError::BrokenTable { file: name.to_string(), line, message }
}
