//! The language as a JSON Schema (2020-12), for editors.

use serde_json::{Map, Value, json};

use super::language::File;
use super::shape::{FieldShape, Need, Object, Shape};

/// A number that comes from a variable is a text in the file.
const VARIABLE: &str = r"\$\{";

/// The JSON Schema of a pipeline file.
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let root = File::object();
    let mut schema = object(&root, &mut definitions);
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("Fluxmill pipeline file"));
    schema.insert("$defs".to_owned(), Value::Object(definitions));
    Value::Object(schema)
}

fn object(object: &Object, definitions: &mut Map<String, Value>) -> Map<String, Value> {
    let mut properties = Map::new();
    for field in &object.fields {
        properties.insert(field.key.to_owned(), property(field, definitions));
    }
    let required: Vec<_> = object.fields.iter().filter(|field| field.need == Need::Required).map(|f| f.key).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("description".to_owned(), json!(object.doc));
    schema.insert("properties".to_owned(), Value::Object(properties));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

fn property(field: &FieldShape, definitions: &mut Map<String, Value>) -> Value {
    let mut value = match shape(&field.shape, definitions) {
        Value::Object(map) => map,
        other => return other,
    };
    let holds = match field.need {
        Need::Required => String::new(),
        Need::Default("{}") => String::new(),
        Need::Default(text) => format!(" Default: {text}."),
        Need::Optional(words) => format!(" When left out: {words}."),
    };
    value.insert("description".to_owned(), json!(format!("{}{holds}", field.doc)));
    if let (Need::Default(text), Shape::Flag | Shape::Whole { .. }) = (field.need, &field.shape) {
        value.insert("default".to_owned(), serde_json::from_str(text).unwrap_or(json!(text)));
    } else if let Need::Default(text) = field.need
        && text != "{}"
    {
        value.insert("default".to_owned(), json!(text));
    }
    Value::Object(value)
}

fn shape(of: &Shape, definitions: &mut Map<String, Value>) -> Value {
    let text = |pattern: String| json!({ "type": "string", "pattern": format!("{VARIABLE}|{pattern}") });
    match of {
        Shape::Text { .. } => json!({ "type": ["string", "number", "boolean"] }),
        Shape::Flag => json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": VARIABLE }] }),
        Shape::Whole { min, max } => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            { "type": "string", "pattern": VARIABLE },
        ] }),
        Shape::Size { .. } => text(r"^\s*[0-9]+ *(B|KiB|MiB|GiB)\s*$".to_owned()),
        Shape::Duration { .. } => text(r"^\s*[0-9]+ *(ms|s|m|h)\s*$".to_owned()),
        Shape::Range { .. } => text(r"^\s*[0-9]+ *(ms|s|m|h) *\.\. *[0-9]+ *(ms|s|m|h)\s*$".to_owned()),
        Shape::Words(words) => json!({ "anyOf": [
            { "enum": words.iter().map(|word| word.word).collect::<Vec<_>>() },
            { "type": "string", "pattern": VARIABLE },
        ] }),
        Shape::Object(of) => {
            if !definitions.contains_key(of.name) {
                let definition = object(of, definitions);
                definitions.insert(of.name.to_owned(), Value::Object(definition));
            }
            json!({ "$ref": format!("#/$defs/{}", of.name) })
        }
        Shape::Map { value, .. } => json!({ "type": "object", "additionalProperties": shape(value, definitions) }),
        Shape::List(item) => json!({ "type": "array", "minItems": 1, "items": shape(item, definitions) }),
        Shape::Any(shapes) => {
            json!({ "anyOf": shapes.iter().map(|one| shape(one, definitions)).collect::<Vec<_>>() })
        }
    }
}
