//! loratune-engine
