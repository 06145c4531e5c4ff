//! The language as a reference for people: docs/configuration.md.

use std::fmt::Write as _;

use super::language::File;
use super::shape::{Need, Object, Shape};
use super::units::{show_millis, show_size};
use super::validate::columnar::{HONOURED, PASSED_ON, columnar_settings};
use super::validate::foreign::FOREIGN;
use super::validate::properties::REFUSED;
use crate::spec::ColumnarSettings;

const HEAD: &str = "\
# The pipeline file

This reference is generated: `fluxmill schema --markdown > docs/configuration.md`. For editors there is a JSON Schema: \
`fluxmill schema`.

The smallest chain that does something:

```yaml
connections:
  main: { kafka: { brokers: [\"${KAFKA_BROKERS:-localhost:9092}\"] } }
pipelines:
  copy:
    from: { topics: [orders] }
    to: { topic: copies }
```

Rules

- A file is one YAML document in UTF-8, at most 1MiB. Keys that the language does not know are mistakes, and so are tags, \
merge keys and keys that are written twice. Anchors and aliases work.
- Sizes and durations carry their unit: `B`, `KiB`, `MiB`, `GiB`; `ms`, `s`, `m`, `h`. Numbers are whole.
- `${VAR}` is replaced by the environment variable, `${VAR:-default}` by the default when it is not set or empty; `$${` \
gives the two characters `${`. This is done in values, not in keys, and what a variable holds is never read as YAML.
- Secrets may be `{ file: path }`. They are never printed.
- Paths are relative to the folder of the file, and must exist.
- `fluxmill check FILE` finds every mistake at once; `fluxmill explain FILE` prints what will run, defaults included.
";

const PROPERTIES_HEAD: &str = "
## librdkafka properties

`properties` of a connection are plain numbers and words, without units: bytes, kilobytes and milliseconds as the name \
says. `fluxmill check` knows every property of librdkafka 2.12, what it takes, and which must fit each other. Callbacks, \
which only a program can set, are refused.
";

/// The reference, in Markdown.
pub fn markdown() -> String {
    let mut objects = Vec::new();
    collect(&File::object(), &mut objects);
    let mut out = HEAD.to_owned();
    for object in &objects {
        section(&mut out, object);
    }
    properties(&mut out);
    out
}

/// What becomes of each librdkafka property.
fn properties(out: &mut String) {
    out.push_str(PROPERTIES_HEAD);
    let defaults = columnar_settings(&ColumnarSettings::default());
    out.push_str("\n### Honoured by the columnar client\n\n");
    out.push_str("| property | value | when left out | meaning |\n| --- | --- | --- | --- |\n");
    for (honoured, (_, default)) in HONOURED.iter().zip(&defaults) {
        let other = honoured.other_name().map_or(String::new(), |other| format!(", `{other}`"));
        let value = honoured.bounds().map_or("a word or text".to_owned(), |(min, max)| format!("{min} to {max}"));
        let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
        let _ = writeln!(out, "| `{}`{other} | {value} | {default} | {} |", honoured.name, honoured.doc);
    }
    let names: Vec<_> = PASSED_ON.iter().map(|name| format!("`{name}`")).collect();
    let _ = write!(out, "\n### Passed on to librdkafka, with both clients\n\n{}.\n", names.join(", "));
    out.push_str("\n### Refused under `client: columnar`\n\n");
    out.push_str("`client: librdkafka` takes these. A value in the second column says what the columnar client does anyway, and is taken.\n\n");
    out.push_str("| property | taken | why the columnar client has it not | instead |\n| --- | --- | --- | --- |\n");
    for foreign in FOREIGN {
        let same = foreign.same.map_or("-".to_owned(), |same| format!("`{same}`"));
        let _ = writeln!(out, "| `{}` | {same} | {} | {} |", foreign.name, foreign.why, foreign.instead);
    }
    out.push_str("\n### Refused with both clients\n\n");
    out.push_str("| property | why it is refused | instead |\n| --- | --- | --- |\n");
    for refused in REFUSED {
        let _ = writeln!(out, "| `{}` | {} | {} |", refused.name, refused.why, refused.instead);
    }
}

fn collect(object: &Object, objects: &mut Vec<Object>) {
    if objects.iter().any(|known| known.name == object.name) {
        return;
    }
    objects.push(object.clone());
    object.fields.iter().for_each(|field| collect_shape(&field.shape, objects));
}

fn collect_shape(shape: &Shape, objects: &mut Vec<Object>) {
    match shape {
        Shape::Object(object) => collect(object, objects),
        Shape::Map { value, .. } => collect_shape(value, objects),
        Shape::List(item) => collect_shape(item, objects),
        Shape::Any(shapes) => shapes.iter().for_each(|shape| collect_shape(shape, objects)),
        _ => {}
    }
}

fn section(out: &mut String, object: &Object) {
    let _ = write!(out, "\n## {}\n\n{}\n\n", object.name, object.doc);
    out.push_str("| key | value | when left out | meaning |\n| --- | --- | --- | --- |\n");
    for field in &object.fields {
        let left_out = match field.need {
            Need::Required => "required".to_owned(),
            Need::Default("{}") => "the defaults in it".to_owned(),
            Need::Default(text) => format!("`{text}`"),
            Need::Optional(words) => words.to_owned(),
        };
        let left_out = match (&field.shape, field.need) {
            (Shape::Map { .. }, Need::Default(_)) => "none".to_owned(),
            _ => left_out,
        };
        let _ = writeln!(out, "| `{}` | {} | {left_out} | {} |", field.key, value(&field.shape), field.doc);
    }
    for (key, instead) in object.later {
        let _ = write!(out, "\n`{key}` is not available yet: {instead}.\n");
    }
}

fn value(shape: &Shape) -> String {
    match shape {
        Shape::Text { what, .. } => (*what).to_owned(),
        Shape::Flag => "`true` or `false`".to_owned(),
        Shape::Whole { min, max } => format!("{min} to {max}"),
        Shape::Size { min, max } => format!("a size, {} to {}", show_size(*min), show_size(*max)),
        Shape::Duration { min, max } => format!("a duration, {} to {}", show_millis(*min), show_millis(*max)),
        Shape::Range { min, max } => {
            format!("two durations, such as `100ms..10s`, {} to {}", show_millis(*min), show_millis(*max))
        }
        Shape::Words(words) => {
            words.iter().map(|word| format!("`{}` ({})", word.word, word.doc)).collect::<Vec<_>>().join(" or ")
        }
        Shape::Object(object) => format!("[{}](#{})", object.name, object.name.to_lowercase()),
        Shape::Map { key, value: of, .. } => format!("{key}: {}", value(of)),
        Shape::List(item) => format!("a list of: {}", value(item)),
        Shape::Any(shapes) => shapes.iter().map(value).collect::<Vec<_>>().join(" or "),
    }
}
