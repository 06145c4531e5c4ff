//! What the user wrote: a YAML file becomes a [`ChainSpec`], or every mistake in it at once, each with its place and
//! what to write instead. Refuses to reach anything but files: brokers and components are asked by others, who point
//! at the file through [`Loaded`].
//!
//! The way: `tree` (YAML with places) -> `read` (types, by the tables of `language`) -> `validate` (what the
//! values mean together) -> [`crate::spec`].

mod error;
mod interpolate;
mod language;
mod read;
mod reference;
mod scalar;
mod schema;
mod secret;
mod shape;
mod tree;
mod units;
mod validate;

use std::io::Read as _;
use std::path::Path;

pub use error::{ConfigErrors, Kind, MISTAKES_MAX, Mistake, Source, Span};
pub use reference::markdown;
pub use schema::json_schema;
pub(crate) use units::{show_duration, show_size};

use read::Read as _;
pub(crate) use validate::columnar::columnar_settings;
use validate::{Context, Places};

use crate::spec::ChainSpec;

/// A chain, and where its parts stand in the file.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What will run.
    pub spec: ChainSpec,
    source: Source,
    places: Places,
}

impl Loaded {
    /// The file's name, as it was given.
    pub fn file(&self) -> &str {
        &self.source.file
    }

    /// A component was refused: points at the pipeline's `wasm`, or at its name.
    pub fn error_at_function(&self, pipeline: &str, message: String, help: Option<String>) -> ConfigErrors {
        let place = self.places.pipelines.get(pipeline);
        let span = place.map(|(name, wasm)| wasm.as_ref().unwrap_or(name).clone());
        self.error(Kind::Function, span, message, help)
    }

    /// The broker does not know a topic, or refuses it: points at its first mention. A default dead letter is not
    /// mentioned; then at its pipeline's name.
    pub fn error_at_topic(&self, connection: &str, topic: &str, message: String, help: Option<String>) -> ConfigErrors {
        let span = self.places.topics.get(&(connection.to_owned(), topic.to_owned())).cloned();
        self.error(Kind::Topic, span, message, help)
    }

    /// A broker cannot be used: points at the connection's name.
    pub fn error_at_connection(&self, connection: &str, message: String, help: Option<String>) -> ConfigErrors {
        self.error(Kind::Connection, self.places.connections.get(connection).cloned(), message, help)
    }

    fn error(&self, kind: Kind, span: Option<Span>, message: String, help: Option<String>) -> ConfigErrors {
        let mistake = Mistake { kind, message, span, label: String::new(), other: None, help };
        ConfigErrors::new(self.source.clone(), vec![mistake])
    }
}

/// Reads a pipeline file. Variables come from `environment`; paths in the file are relative to its folder, and must
/// exist.
///
/// # Errors
/// Every mistake in the file.
pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, ConfigErrors> {
    let file = path.display().to_string();
    let text = text_of(path)
        .map_err(|mistake| ConfigErrors::new(Source { file: file.clone(), text: "".into() }, vec![*mistake]))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut reader = read::Reader::new(&text, folder, environment);
    let mut mistakes = Vec::new();
    let tree = tree::parse(&text, &mut mistakes);
    let source = Source { file, text: secret::mask(&text, tree.as_deref()).into() };
    let Some(tree) = tree.filter(|tree| !tree.is_null()) else {
        if mistakes.is_empty() {
            mistakes.push(empty());
        }
        return Err(ConfigErrors::new(source, mistakes));
    };
    let written = language::File::read(&tree, &(0..0), &mut reader);
    mistakes.append(&mut reader.mistakes);
    let absolute = std::path::absolute(path).ok();
    let folder = absolute.as_deref().and_then(Path::parent).and_then(Path::file_name).and_then(|name| name.to_str());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let made = written.map(|file| validate::validate(&file, Context { folder, cores }, &mut mistakes));
    match made {
        Some((Some(spec), places)) if mistakes.is_empty() => Ok(Loaded { spec, source, places }),
        _ => Err(ConfigErrors::new(source, mistakes)),
    }
}

/// The names of all properties that librdkafka is known to have.
#[cfg(test)]
pub(crate) fn properties() -> impl Iterator<Item = &'static str> {
    validate::librdkafka::KNOWN.iter().map(|property| property.name)
}

/// Reads a duration on the command line.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = |_| format!("{text:?} is no duration; write a whole number and a unit (ms, s, m, h), such as 30s");
    units::millis(text).map(std::time::Duration::from_millis).map_err(wrong)
}

fn text_of(path: &Path) -> Result<String, Box<Mistake>> {
    let unreadable = |error: std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "write the path of a pipeline file, such as `chain.yaml`",
            std::io::ErrorKind::IsADirectory => "write the file in it, such as `chain.yaml`",
            _ => "is it a file that you may read?",
        };
        Box::new(Mistake::whole(Kind::Unreadable, scalar::plain(&error)).help(help))
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(tree::BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > tree::BYTES_MAX {
        let message = format!("the file is larger than {}", show_size(tree::BYTES_MAX as u64));
        return Err(Box::new(Mistake::whole(Kind::TooLarge, message).help("is this the pipeline file?")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("byte {at}, in line {line}, is not UTF-8");
        Box::new(Mistake::whole(Kind::NotText, message).help("save the file as UTF-8"))
    })
}

fn empty() -> Mistake {
    let help = "the smallest chain is:\n\
        connections:\n  main: { kafka: { brokers: [\"localhost:9092\"] } }\n\
        pipelines:\n  copy:\n    from: { kafka: { topics: [orders] } }\n    to: { kafka: { topic: copies } }";
    Mistake::whole(Kind::Empty, "the file says nothing").help(help)
}
