//! loratune-data
