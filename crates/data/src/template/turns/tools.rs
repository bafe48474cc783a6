//! How templates describe tools to the model, and how the model's calls are written.

use serde_json::{Map, Value};

use super::super::{json, python, text, value};

/// A convention for tools. The names are those of LLaMA-Factory's `tool_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `Action: … Action Input: …` (ReAct), named `default`.
    Action,
    /// The same as LLaMA-Factory 0.7 worded it.
    Action07,
    /// ChatGLM3's and GLM-4's.
    Glm4,
    /// GLM-4.5's.
    Glm4Moe,
    /// LFM2's: calls as Python's.
    Lfm2,
    /// Ling 2's.
    Ling,
    /// Llama 3.1's with JSON.
    Llama3,
    /// MiniMax-M1's.
    Minimax1,
    /// MiniMax-M2's.
    Minimax2,
    /// Mistral's from v3 on.
    Mistral,
    /// Phi-4-mini's.
    Phi4Mini,
    /// Qwen 2.5's and Qwen 3's (Hermes).
    Qwen,
    /// Qwen 3.5's.
    Qwen35,
    /// Seed's.
    Seed,
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub name: String,
    pub arguments: Value,
}

/// A prompt's file without the line break that ends it.
macro_rules! prompt {
    ($file:literal) => {
        include_str!(concat!("prompts/", $file, ".txt")).trim_suffix_newline()
    };
}

trait TrimSuffixNewline {
    fn trim_suffix_newline(&self) -> &str;
}

impl TrimSuffixNewline for str {
    fn trim_suffix_newline(&self) -> &str {
        self.strip_suffix('\n').unwrap_or(self)
    }
}

impl ToolFormat {
    /// All names that `tool_format` takes.
    pub const NAMES: [(&'static str, Self); 14] = [
        ("default", Self::Action),
        ("default@0.7", Self::Action07),
        ("glm4", Self::Glm4),
        ("glm4_moe", Self::Glm4Moe),
        ("lfm2", Self::Lfm2),
        ("ling", Self::Ling),
        ("llama3", Self::Llama3),
        ("minimax1", Self::Minimax1),
        ("minimax2", Self::Minimax2),
        ("mistral", Self::Mistral),
        ("phi4_mini", Self::Phi4Mini),
        ("qwen", Self::Qwen),
        ("qwen3_5", Self::Qwen35),
        ("seed_oss", Self::Seed),
    ];

    /// By its name.
    pub fn find(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, format)| *format)
    }

    /// The text that follows the system text. `now` is today in seconds since 1970 (UTC) for Llama 3's; `None` = the
    /// clock. Nothing for no tools.
    pub(super) fn describe(self, tools: &[Value], now: Option<u64>) -> Result<String, String> {
        // Phi-4-mini's is what the data has, an empty list, too.
        if tools.is_empty() && self != Self::Phi4Mini {
            return Ok(String::new());
        }
        let functions: Vec<&Value> = tools.iter().map(|tool| tool.get("function").unwrap_or(tool)).collect();
        let each = |before: &str, items: &[Value], after: &str| -> String {
            items.iter().map(|item| format!("{before}{}{after}", json::dumps(item, 0))).collect()
        };
        let bare: Vec<Value> = functions.iter().map(|f| (*f).clone()).collect();
        let (prompt, text) = match self {
            Self::Action | Self::Action07 => {
                let prompt = if self == Self::Action { prompt!("action") } else { prompt!("action_0_7") };
                let (text, names) = actions(&functions)?;
                (prompt.replacen("{{names}}", &names, 1), text)
            }
            Self::Glm4 => {
                let one = |f: &&Value| -> Result<String, String> {
                    let body = json::dumps(f, 4);
                    Ok(format!(
                        "\n\n## {}\n\n{body}\n在调用上述函数时，请使用 Json 格式表示调用的参数。",
                        name(f)?
                    ))
                };
                (prompt!("glm4").into(), functions.iter().map(one).collect::<Result<_, _>>()?)
            }
            Self::Llama3 => {
                let date = python::strftime("%d %b %Y", now.unwrap_or_else(python::clock));
                let date = date.map_err(|e| e.to_string())?;
                let text = tools.iter().map(|tool| json::dumps(tool, 4) + "\n\n").collect();
                (prompt!("llama3").replacen("{{date}}", &date, 1), text)
            }
            Self::Mistral => {
                let tools = json::dumps(&Value::Array(tools.to_vec()), 0);
                return Ok(format!("[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS]"));
            }
            Self::Phi4Mini => {
                return Ok(format!("<|tool|>{}<|/tool|>", json::dumps(&Value::Array(bare), 0)));
            }
            Self::Glm4Moe => (prompt!("glm4_moe").into(), each("\n", tools, "")),
            Self::Lfm2 => (prompt!("lfm2").into(), json::dumps(&Value::Array(bare), 0)),
            Self::Ling => (prompt!("ling").to_string() + "\ndetailed thinking off", each("\n", tools, "")),
            Self::Minimax1 => (prompt!("minimax1").into(), each("", &bare, "\n")),
            Self::Minimax2 => (prompt!("minimax2").into(), each("<tool>", &bare, "</tool>\n")),
            Self::Qwen => (prompt!("qwen").into(), each("\n", tools, "")),
            Self::Qwen35 => (prompt!("qwen3_5").into(), each("\n", &bare, "")),
            Self::Seed => (prompt!("seed").into(), format!("\n{}", json::dumps(&Value::Array(bare), 0))),
        };
        Ok(prompt.replacen("{{tools}}", &text, 1))
    }

    /// The text of a response's calls.
    pub(super) fn calls(self, calls: &[Call]) -> Result<String, String> {
        let joined = |separator: &str, one: fn(&Call) -> Result<String, String>| {
            calls.iter().map(one).collect::<Result<Vec<_>, _>>().map(|texts| texts.join(separator))
        };
        match self {
            Self::Action | Self::Action07 | Self::Phi4Mini => joined("\n", |call| {
                Ok(format!("Action: {}\nAction Input: {}", call.name, json::dumps(&call.arguments, 0)))
            }),
            Self::Glm4 => match calls {
                [call] => Ok(format!("{}\n{}", call.name, json::dumps(&call.arguments, 0))),
                _ => Err(format!(
                    "it calls {} tools at once, and glm4's format knows only one call",
                    calls.len()
                )),
            },
            Self::Glm4Moe => joined("\n", |call| {
                let body = parameters(call, |key, value| {
                    format!("\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>")
                })?;
                Ok(format!("\n<tool_call>{}{body}", call.name))
            }),
            Self::Lfm2 => {
                let calls = joined(", ", |call| {
                    let one = |(key, value): (&String, &Value)| match value {
                        Value::String(text) => format!("{key}=\"{text}\""),
                        other => format!("{key}={}", json::dumps(other, 0)),
                    };
                    let arguments: Vec<String> = arguments(call)?.iter().map(one).collect();
                    Ok(format!("{}({})", call.name, arguments.join(", ")))
                })?;
                Ok(format!("<|tool_call_start|>[{calls}]<|tool_call_end|>"))
            }
            Self::Llama3 => {
                let objects: Vec<Value> = calls.iter().map(|call| object(call, "parameters")).collect();
                if let [one] = objects.as_slice() {
                    return Ok(json::dumps(one, 0));
                }
                Ok(json::dumps(&Value::Array(objects), 0))
            }
            Self::Minimax1 => {
                let calls = joined("\n", |call| Ok(json::dumps(&object(call, "arguments"), 0)))?;
                Ok(format!("<tool_calls>\n{calls}\n</tool_calls>"))
            }
            Self::Minimax2 => joined("\n", |call| {
                let body = parameters(call, |key, value| {
                    format!("\n<parameter name=\"{key}\">{value}</parameter>")
                })?;
                Ok(format!("<invoke name=\"{}\">{body}\n</invoke>", call.name))
            }),
            Self::Mistral => {
                let objects = calls.iter().map(|call| object(call, "arguments")).collect();
                Ok(json::dumps(&Value::Array(objects), 0))
            }
            Self::Ling | Self::Qwen => joined("\n", |call| {
                let call = json::dumps(&object(call, "arguments"), 0);
                Ok(format!("<tool_call>\n{call}\n</tool_call>"))
            }),
            Self::Qwen35 => joined("\n", |call| {
                let body =
                    parameters(call, |key, value| format!("\n<parameter={key}>\n{value}\n</parameter>"))?;
                Ok(format!("<tool_call>\n<function={}>{body}\n</function>\n</tool_call>", call.name))
            }),
            Self::Seed => joined("\n", |call| {
                let body = parameters(call, |key, value| format!("\n<parameter={key}>{value}</parameter>"))?;
                let name = &call.name;
                Ok(format!("\n<seed:tool_call>\n<function={name}{body}\n</function>\n</seed:tool_call>"))
            }),
        }
    }
}

fn object(call: &Call, arguments: &str) -> Value {
    let mut object = Map::new();
    object.insert("name".into(), Value::String(call.name.clone()));
    object.insert(arguments.into(), call.arguments.clone());
    Value::Object(object)
}

fn arguments(call: &Call) -> Result<&Map<String, Value>, String> {
    call.arguments
        .as_object()
        .ok_or_else(|| format!("the arguments of `{}` should be an object with a name for each", call.name))
}

/// One text for each argument; strings as they are, the rest as JSON.
fn parameters(call: &Call, one: impl Fn(&str, &str) -> String) -> Result<String, String> {
    let text = |(key, value): (&String, &Value)| match value {
        Value::String(text) => one(key, text),
        other => one(key, &json::dumps(other, 0)),
    };
    Ok(arguments(call)?.iter().map(text).collect())
}

fn name(function: &Value) -> Result<&str, String> {
    let name = function.get("name").and_then(Value::as_str);
    name.ok_or_else(|| "a tool has no `name`, or one that is not a string".into())
}

/// The descriptions and the names of tools for [`ToolFormat::Action`].
fn actions(functions: &[&Value]) -> Result<(String, String), String> {
    let shown = |value: Option<&Value>| match value {
        Some(value) => text::str(&value::of_json(value)).into_owned(),
        None => String::new(),
    };
    let mut out = String::new();
    let mut names = Vec::new();
    for function in functions {
        let name = name(function)?;
        let parameters = function.get("parameters");
        let required = parameters.and_then(|p| p.get("required")).and_then(Value::as_array);
        let properties = parameters.and_then(|p| p.get("properties")).and_then(Value::as_object);
        let mut arguments = String::new();
        for (key, property) in properties.into_iter().flatten() {
            let is_required = required.is_some_and(|r| r.iter().any(|v| v.as_str() == Some(key)));
            let options = property.get("enum").and_then(Value::as_array).filter(|o| !o.is_empty());
            let options = options.map(|o| o.iter().map(|v| shown(Some(v))).collect::<Vec<_>>().join(", "));
            let items = property.get("items").filter(|i| i.as_object().is_some_and(|i| !i.is_empty()));
            arguments += &format!(
                "  - {key} ({}{}): {}{}{}\n",
                shown(property.get("type")),
                if is_required { ", required" } else { "" },
                shown(property.get("description")),
                options.map(|o| format!(", should be one of [{o}]")).unwrap_or_default(),
                items
                    .map(|i| format!(", where each item should be {}", shown(i.get("type"))))
                    .unwrap_or_default(),
            );
        }
        let about = shown(function.get("description"));
        out += &format!("> Tool Name: {name}\nTool Description: {about}\nTool Args:\n{arguments}\n");
        names.push(name);
    }
    Ok((out, names.join(", ")))
}
