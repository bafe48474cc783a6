//! Short configurations.
#![allow(dead_code)]

use loratune_train::config::*;

pub const BASE: &str = "model_name_or_path: m\ndataset: d.jsonl\noutput_dir: out\n";

pub fn load(extra: &str, overrides: &[&str]) -> Result<Loaded, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    RunConfig::from_text(&format!("{BASE}{extra}"), "run.yaml", &overrides)
}

pub fn config(extra: &str, overrides: &[&str]) -> RunConfig {
    load(extra, overrides).unwrap_or_else(|e| panic!("{extra}{overrides:?}: {e}")).config
}

pub fn refusal(extra: &str, overrides: &[&str]) -> String {
    match load(extra, overrides) {
        Ok(loaded) => panic!("accepted: {extra}{overrides:?}\n{}", loaded.config.to_yaml()),
        Err(e) => {
            assert!(e.is_usage());
            e.to_string()
        }
    }
}
