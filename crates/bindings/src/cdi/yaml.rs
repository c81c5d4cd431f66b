//! The YAML that tools write specifications in, as the values of JSON.
//!
//! One document of mappings, lists and scalars. Aliases are refused: with them a short text means a long one; so are
//! tags, and keys that are no text.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// How deep mappings and lists may be.
const MAX_DEPTH: usize = 32;

/// What is open while the events come.
enum Open {
    List(Vec<Value>),
    /// With the key whose value is awaited.
    Mapping(Map<String, Value>, Option<String>),
}

/// Reads one document.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    let mut whole = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let at = |what: &str| format!("line {}: {what}", span.start.line());
        let value = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(_) if whole.is_some() => return Err(at("a second document")),
            Event::DocumentStart(_) => continue,
            Event::Alias(_) => return Err(at("aliases are not read")),
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return Err(at("tags are not read"));
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == MAX_DEPTH => {
                return Err(at("lists and mappings are too deep"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Mapping(Map::new(), None));
                continue;
            }
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(values)) => Value::Array(values),
                Some(Open::Mapping(mapping, _)) => Value::Object(mapping),
                None => return Err(at("an end without a beginning")),
            },
        };
        match open.last_mut() {
            None => whole = Some(value),
            Some(Open::List(values)) => values.push(value),
            Some(Open::Mapping(mapping, key)) => match key.take() {
                Some(name) => {
                    if mapping.contains_key(&name) {
                        return Err(at(&format!("{name} for the second time")));
                    }
                    mapping.insert(name, value);
                }
                None => match value {
                    Value::String(name) => *key = Some(name),
                    _ => return Err(at("a key that is no text")),
                },
            },
        }
    }
    whole.ok_or_else(|| "it is empty".to_owned())
}

/// What a scalar is by the core schema of YAML 1.2, as far as specifications need it.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<i64>() {
        Ok(number) if is_decimal => Value::Number(Number::from(number)),
        _ => Value::String(text.to_owned()),
    }
}
