//! loratune-train
