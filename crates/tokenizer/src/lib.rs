//! loratune-tokenizer
