//! Arguments of an optimiser (`optim_args`).

use super::field::{Field, Kwargs, Problem};
use super::value::Value;

/// Names and values, as a mapping or as Hugging Face writes them: `momentum=0.9,nesterov=true`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OptimArgs(pub Vec<(String, Value)>);

impl OptimArgs {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// The number of that name, if there is one.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.get(name)?.as_f64()
    }

    /// The truth value of that name, if there is one.
    pub fn switch(&self, name: &str) -> Option<bool> {
        bool::parse(self.get(name)?).ok()
    }
}

impl Field for OptimArgs {
    const TEXT: bool = true;
    fn expected() -> String {
        "arguments such as momentum=0.9,nesterov=true, or a mapping".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        let Value::Str(text) = value else { return Kwargs::parse(value).map(|k| OptimArgs(k.0)) };
        let one = |pair: &str| {
            let (name, value) = pair.split_once('=').ok_or(Problem::Type)?;
            let value = match value.trim().parse::<f64>() {
                Ok(x) => Value::Float(x),
                Err(_) => Value::Str(value.trim().to_string()),
            };
            Ok((name.trim().to_string(), value))
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(OptimArgs)
    }
    fn to_value(&self) -> Value {
        Value::Map(self.0.clone())
    }
}
