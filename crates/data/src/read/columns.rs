//! Parquet and Arrow files: batches of columns, turned into rows as they are asked for.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::{Body, FileRows, LazyRow, io, name_of};
use crate::error::{DataError, Result, RowRef};

/// Rows of a Parquet file that are decoded at once.
const BATCH: usize = 1024;

/// The first bytes of an Arrow file; a stream has none of its own.
const ARROW_FILE: &[u8] = b"ARROW1";

fn broken(name: &str, message: impl ToString) -> DataError {
    DataError::BrokenColumns { file: name.to_string(), message: message.to_string() }
}

pub(super) fn parquet(file: File, path: &Path) -> Result<FileRows> {
    let name = name_of(path);
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(file).and_then(|b| b.with_batch_size(BATCH).build());
    Ok(rows(&name.clone(), reader.map_err(|e| broken(&name, e))?))
}

pub(super) fn arrow(file: File, path: &Path) -> Result<FileRows> {
    let name = name_of(path);
    let mut file = BufReader::new(file);
    let mut magic = [0; ARROW_FILE.len()];
    let is_file = file.read_exact(&mut magic).is_ok() && magic == ARROW_FILE;
    file.rewind().map_err(io(path))?;
    if is_file {
        return Ok(rows(&name, FileReader::try_new(file, None).map_err(|e| broken(&name, e))?));
    }
    Ok(rows(&name, StreamReader::try_new(file, None).map_err(|e| broken(&name, e))?))
}

fn rows(
    name: &Arc<str>,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>> + Send + 'static,
) -> FileRows {
    let name = name.clone();
    let mut first = 0;
    let all = batches.map(move |batch| {
        let batch = Arc::new(batch.map_err(|e| broken(&name, e))?);
        let (name, start) = (name.clone(), first);
        first += batch.num_rows();
        Ok((0..batch.num_rows()).map(move |row| LazyRow {
            source: RowRef { file: name.clone(), row: start + row + 1, line: None },
            body: Body::Column(batch.clone(), row),
        }))
    });
    Box::new(all.flat_map(|batch| -> FileRows {
        match batch {
            Ok(rows) => Box::new(rows.map(Ok)),
            Err(e) => Box::new(std::iter::once(Err(e))),
        }
    }))
}

/// The cells of one row by the names of their columns.
pub(super) fn fields(batch: &RecordBatch, row: usize) -> Map<String, Value> {
    let schema = batch.schema_ref();
    schema.fields().iter().zip(batch.columns()).map(|(f, c)| (f.name().clone(), cell(c, row))).collect()
}

/// One value as JSON. A type that JSON has nothing for (times, bytes, decimals) becomes an object that names it: no format
/// takes that for a text, and a column that no format reads does no harm.
fn cell(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => f32::from(array.as_primitive::<Float16Type>().value(row)).into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            fields
                .iter()
                .zip(columns)
                .map(|(f, c)| (f.name().clone(), cell(c, row)))
                .collect::<Map<_, _>>()
                .into()
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let entry = |i| Some((cell(keys, i).as_str()?.to_string(), cell(values, i)));
            (0..entries.len()).filter_map(entry).collect::<Map<_, _>>().into()
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            match cell(dictionary.keys(), row).as_u64() {
                Some(key) => cell(dictionary.values(), key as usize),
                None => Value::Null,
            }
        }
        other => Map::from_iter([("type without a JSON form".to_string(), other.to_string().into())]).into(),
    }
}

fn list(items: &dyn Array) -> Value {
    (0..items.len()).map(|i| cell(items, i)).collect::<Vec<_>>().into()
}
