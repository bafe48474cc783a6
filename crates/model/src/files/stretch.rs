//! A model for longer texts than it was made for: its rotary embedding scaled as LLaMA-Factory's `rope_scaling` does.

use serde_json::{Map, Value, json};

use super::{Error, ModelConfig, ModelFiles, Result};

impl ModelFiles {
    /// The same model for texts of up to `length` tokens. The embedding is scaled by the smallest whole factor that makes the
    /// context long enough, in one of transformers' kinds (`linear`, `dynamic`, `yarn`, `llama3`), in the place of a scaling that
    /// the configuration has; `None` if the original context suffices.
    ///
    /// # Errors
    /// If the model's family knows no such scaling, or has two embeddings.
    pub fn stretched(&self, kind: &str, length: usize) -> Result<Option<ModelFiles>> {
        let mut raw_config = self.raw_config.clone();
        let Some(map) = raw_config.as_object_mut() else { return Ok(None) };
        let parts = |key: &str| map.get(key).and_then(Value::as_object).filter(|part| !part.is_empty());
        let parameters = parts("rope_parameters").cloned();
        if parameters.as_ref().is_some_and(|p| p.values().any(Value::is_object)) {
            let detail = "describes two rotary embeddings, of which rope_scaling says nothing; write what is meant into config.json";
            return Err(Error::field(&self.path, "rope_parameters", detail));
        }
        let original = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| original(parts(key)?));
        let context = original.or_else(|| self.config_length()).unwrap_or(self.config.spec.max_positions);
        if context == 0 || length <= context {
            return Ok(None);
        }
        let factor = length.div_ceil(context);
        let mut scaling = Map::new();
        scaling.insert("rope_type".into(), kind.into());
        scaling.insert("factor".into(), json!(factor as f64));
        if kind != "linear" {
            scaling.insert("original_max_position_embeddings".into(), context.into());
        }
        if kind == "llama3" {
            scaling.insert("low_freq_factor".into(), json!(1.0));
            scaling.insert("high_freq_factor".into(), json!(4.0));
        }
        if map.contains_key("rope_scaling") || parameters.is_none() {
            map.insert("rope_scaling".into(), Value::Object(scaling.clone()));
        }
        if let Some(mut parameters) = parameters {
            parameters.retain(|key, _| ["rope_theta", "partial_rotary_factor"].contains(&key.as_str()));
            parameters.extend(scaling);
            map.insert("rope_parameters".into(), Value::Object(parameters));
        }
        map.insert("max_position_embeddings".into(), (context * factor).into());
        let config = ModelConfig::from_value(&raw_config, &self.path)?;
        Ok(Some(self.with_config(config, raw_config)))
    }

    fn config_length(&self) -> Option<usize> {
        length(self.raw_config.get("max_position_embeddings"))
    }
}

fn original(scaling: &Map<String, Value>) -> Option<usize> {
    length(scaling.get("original_max_position_embeddings"))
}

fn length(value: Option<&Value>) -> Option<usize> {
    value?.as_u64().and_then(|n| usize::try_from(n).ok())
}
