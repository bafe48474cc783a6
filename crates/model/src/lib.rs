//! loratune-model
