//! Reads the tree into the language's types, as far as it can: a mistake is noted and the rest is read on, so that one
//! look finds them all. Refuses to judge what several values mean together; that is `validate`.

use std::path::{Path, PathBuf};

use super::error::{Kind, Mistake, Span};
use super::interpolate::{Environment, Problem, interpolate};
use super::shape::{Need, Object, Shape, one_of};
use super::tree::{Body, Entry, MERGE, Node, parse};
use super::units::{DURATIONS, SIZES, UnitError, unit_for};

/// What can be read from the tree.
pub(crate) trait Read: Sized {
    /// What it looks like.
    fn shape() -> Shape;

    /// Reads it; `at` is where to point at it as a whole. `None`: a mistake was noted.
    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self>;
}

/// What stands under a key, if anything.
#[derive(Clone, Debug)]
pub(crate) struct Field<T> {
    /// The place of the key, when it is written.
    pub(crate) key: Option<Span>,
    /// Where to point at the value; when it is not written, the mapping that it would stand in.
    pub(crate) span: Span,
    /// What was written or holds by default; `None` when it is neither, or was mistaken.
    pub(crate) value: Option<T>,
}

impl<T> Field<T> {
    /// Whether the user wrote it, mistaken or not.
    pub(crate) fn is_written(&self) -> bool {
        self.key.is_some()
    }
}

/// What stands under a key that the user chose.
#[derive(Clone, Debug)]
pub(crate) struct Named<T> {
    /// The key.
    pub(crate) name: String,
    /// The key's place.
    pub(crate) span: Span,
    /// The value; `None` when it was mistaken.
    pub(crate) value: Option<T>,
}

/// One of a list.
#[derive(Clone, Debug)]
pub(crate) struct Item<T> {
    /// Its place.
    pub(crate) span: Span,
    /// What it is.
    pub(crate) value: T,
}

/// Reads one file.
pub(crate) struct Reader<'a> {
    /// The text of the file.
    text: &'a str,
    /// Where variables come from.
    environment: Environment<'a>,
    /// The folder that paths in the file are relative to.
    folder: &'a Path,
    /// The keys on the way to what is being read.
    path: Vec<String>,
    /// What was found.
    pub(crate) mistakes: Vec<Mistake>,
}

/// The entries of a mapping that are known keys.
pub(crate) struct Entries<'n> {
    entries: &'n [Entry],
    at: Span,
    /// Keys for which a mistaken key probably stands: they count as written, so that nothing is said twice.
    excused: Vec<&'static str>,
}

impl<'a> Reader<'a> {
    /// A reader for the text of a file in a folder.
    pub(crate) fn new(text: &'a str, folder: &'a Path, environment: Environment<'a>) -> Self {
        Self { text, environment, folder, path: Vec::new(), mistakes: Vec::new() }
    }

    /// The path of what is being read, such as `pipelines.payment.batch`.
    fn name(&self) -> String {
        if self.path.is_empty() { "the file".to_owned() } else { format!("`{}`", self.path.join(".")) }
    }

    pub(crate) fn mistake(&mut self, mistake: Mistake) {
        self.mistakes.push(mistake);
    }

    /// Reads a value that must be there.
    pub(crate) fn value<T: Read>(&mut self, node: &Node, at: &Span) -> Option<T> {
        if node.is_null() {
            let mistake = Mistake::at(Kind::NoValue, at.clone(), format!("{} has no value", self.name()));
            self.mistake(mistake.help(format!("write one, such as `{}`, or delete the key", T::shape().sample())));
            return None;
        }
        T::read(node, at, self)
    }

    fn wrong_type(&mut self, node: &Node, at: &Span, shape: &Shape) {
        let message = format!("{} must be {}, but is {}", self.name(), shape.noun(), node.noun());
        let key = self.path.last().map_or(String::new(), |key| format!("{key}: "));
        let help = match (&node.body, shape) {
            (Body::Scalar { text, .. }, Shape::List(_)) => format!("write `{key}[{text}]`"),
            _ if self.path.is_empty() => {
                "write `connections:` and `pipelines:`, each followed by its entries".to_owned()
            }
            _ => format!("write `{key}{}`", shape.sample()),
        };
        self.mistake(Mistake::at(Kind::WrongType, at.clone(), message).help(help));
    }

    /// The text of a single value, its variables replaced.
    pub(crate) fn scalar(&mut self, node: &Node, at: &Span, shape: &Shape) -> Option<String> {
        let Body::Scalar { text, .. } = &node.body else {
            self.wrong_type(node, at, shape);
            return None;
        };
        match interpolate(text, self.environment) {
            Ok(text) => Some(text),
            Err(found) => {
                // Escapes and block texts differ from what is written: then the whole value is the place.
                let written = self.text[node.span.clone()].find(text.as_str());
                for one in found {
                    let span = match written {
                        Some(offset) => {
                            let start = node.span.start + offset;
                            start + one.range.start..start + one.range.end
                        }
                        None => node.span.clone(),
                    };
                    self.mistake(interpolation_mistake(one.problem, span));
                }
                None
            }
        }
    }

    /// The known keys of a mapping; notes those that are not.
    pub(crate) fn object<'n>(&mut self, node: &'n Node, at: &Span, object: &Object) -> Option<Entries<'n>> {
        let Body::Map(entries) = &node.body else {
            self.wrong_type(node, at, &Shape::Object(object.clone()));
            return None;
        };
        let mut excused = Vec::new();
        for entry in entries {
            if object.fields.iter().any(|field| field.key == entry.key) {
                continue;
            }
            if entry.key == MERGE {
                excused.extend(object.fields.iter().map(|field| field.key));
                continue;
            }
            if let Some((key, instead)) = object.later.iter().find(|(key, _)| *key == entry.key) {
                let message = format!("`{key}` is not available yet");
                self.mistake(Mistake::at(Kind::NotAvailable, entry.span.clone(), message).help(*instead));
                excused.extend(object.fields.iter().map(|field| field.key));
                continue;
            }
            let keys = || object.fields.iter().map(|field| field.key);
            let meant = similar(&entry.key, keys());
            let place = if self.path.is_empty() { "a chain".to_owned() } else { self.name() };
            let help = match meant {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => {
                    format!("the keys here are {}", keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "))
                }
            };
            excused.extend(meant);
            let message = format!("{place} has no key `{}`", entry.key);
            self.mistake(Mistake::at(Kind::UnknownKey, entry.span.clone(), message).help(help));
        }
        Some(Entries { entries, at: at.clone(), excused })
    }

    /// Reads what stands under a key of a mapping.
    pub(crate) fn field<T: Read>(&mut self, entries: &Entries<'_>, key: &'static str, need: Need) -> Field<T> {
        if let Some(entry) = entries.entries.iter().find(|entry| entry.key == key) {
            self.path.push(key.to_owned());
            let span = place(entry);
            let value = self.value(&entry.node, &span);
            self.path.pop();
            return Field { key: Some(entry.span.clone()), span, value };
        }
        let span = entries.at.clone();
        if entries.excused.contains(&key) {
            return Field { key: Some(span.clone()), span, value: None };
        }
        let value = match need {
            Need::Optional(_) => None,
            Need::Default(text) => default(text, self.folder),
            Need::Required => {
                self.missing(&span, key, &T::shape());
                None
            }
        };
        Field { key: None, span, value }
    }

    fn missing(&mut self, at: &Span, key: &str, shape: &Shape) {
        let message = match self.path.is_empty() {
            true => format!("the file has no `{key}`"),
            false => format!("{} has no `{key}`", self.name()),
        };
        let help = format!("add `{key}: {}`", shape.sample());
        self.mistake(Mistake::at(Kind::MissingKey, at.clone(), message).label("in here").help(help));
    }

    /// A path in the file, against the folder of the file.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Reads `{ file: path }`-like mappings by hand: the keys on the way, for messages.
    pub(crate) fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(key.to_owned());
        let value = read(self);
        self.path.pop();
        value
    }

    /// A value that is none of the words.
    pub(crate) fn unknown_word(&mut self, node: &Node, text: &str, shape: &Shape, words: &[&'static str]) {
        let message = format!("{} must be {}, not `{}`", self.name(), shape.noun(), text.escape_debug());
        let help = match similar(text, words.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("write {}", one_of(words.iter().copied())),
        };
        self.mistake(Mistake::at(Kind::UnknownWord, node.span.clone(), message).help(help));
    }

    /// A word of a later version.
    pub(crate) fn later_word(&mut self, node: &Node, word: &str, instead: &str) {
        let key = self.path.last().cloned().unwrap_or_default();
        let message = format!("`{key}: {word}` is not available yet");
        let help = format!("write `{key}: {instead}`");
        self.mistake(Mistake::at(Kind::NotAvailable, node.span.clone(), message).help(help));
    }

    /// A value that cannot be read as what it must be.
    pub(crate) fn malformed(&mut self, node: &Node, text: &str, shape: &Shape, help: impl Into<String>) {
        let message = format!("{} must be {}, but `{}` is not", self.name(), shape.noun(), text.escape_debug());
        self.mistake(Mistake::at(Kind::Malformed, node.span.clone(), message).help(help));
    }

    /// A number with bounds: within them?
    pub(crate) fn bounded(
        &mut self,
        node: &Node,
        value: u64,
        bounds: (u64, u64),
        show: fn(u64) -> String,
    ) -> Option<u64> {
        let (min, max) = bounds;
        if (min..=max).contains(&value) {
            return Some(value);
        }
        let message = format!("{} must be from {} to {}", self.name(), show(min), show(max));
        let help = format!("write `{}`", show(if value < min { min } else { max }));
        let label = if value < min { "too small" } else { "too large" };
        self.mistake(Mistake::at(Kind::OutOfBounds, node.span.clone(), message).label(label).help(help));
        None
    }

    /// A quantity that could not be read.
    pub(crate) fn bad_quantity(&mut self, node: &Node, text: &str, shape: &Shape, error: UnitError) {
        let units = if matches!(shape, Shape::Size { .. }) { SIZES } else { DURATIONS };
        let names = one_of(units.iter().map(|(unit, _)| *unit));
        let mistake = match error {
            UnitError::Bare(number) => {
                let usual = if units == SIZES { "KiB" } else { "ms" };
                let message = format!("{} needs a unit after `{number}`", self.name());
                Mistake::at(Kind::NoUnit, node.span.clone(), message)
                    .help(format!("the units are {names}: write for example `{number}{usual}`"))
            }
            UnitError::Unknown(unit) => {
                let message = format!("{}: there is no unit `{unit}`", self.name());
                let help = match unit_for(&unit, units) {
                    Some(meant) => format!("write `{}`; the units are {names}", text.replace(unit.as_str(), meant)),
                    None => format!("the units are {names}"),
                };
                Mistake::at(Kind::UnknownUnit, node.span.clone(), message).help(help)
            }
            UnitError::Malformed => {
                let help =
                    format!("write a whole number and its unit, such as `{}`; the units are {names}", shape.sample());
                return self.malformed(node, text, shape, help);
            }
        };
        self.mistake(mistake);
    }
}

/// Where to point at an entry's value: at the value itself when it is a single one, at the key when it is more.
fn place(entry: &Entry) -> Span {
    match entry.node.body {
        Body::Scalar { .. } if !entry.node.is_null() => entry.node.span.clone(),
        _ => entry.span.clone(),
    }
}

/// What holds when nothing is written: read by the same reader, so that the reference and the program cannot differ.
fn default<T: Read>(text: &str, folder: &Path) -> Option<T> {
    let mut reader = Reader::new(text, folder, &|_| None);
    let value = parse(text, &mut reader.mistakes).and_then(|node| T::read(&node, &(0..0), &mut reader));
    debug_assert!(reader.mistakes.is_empty() && value.is_some(), "the default `{text}` is mistaken");
    value
}

fn interpolation_mistake(problem: Problem, span: Span) -> Mistake {
    match problem {
        Problem::Unclosed => Mistake::at(Kind::Interpolation, span, "`${` has no closing `}`")
            .help("write `${VAR}`, `${VAR:-default}`, or `$${` for the two characters `${`"),
        Problem::Form(body) => {
            Mistake::at(Kind::Interpolation, span, format!("`${{{}}}` names no variable", body.escape_debug()))
                .help("write `${VAR}` or `${VAR:-default}`; names have letters, digits and `_`; `$${` gives the two characters `${`")
        }
        Problem::Missing(name) => {
            Mistake::at(Kind::MissingVariable, span, format!("the environment variable `{name}` is not set"))
                .help(format!("set it, or write a default: `${{{name}:-default}}`"))
        }
    }
}

/// The known word that was probably meant.
pub(crate) fn similar<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', ' ', '.'], "_");
    let word = plain(word);
    known
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

impl<T: Read> Read for Vec<Item<T>> {
    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let Body::List(nodes) = &node.body else {
            reader.wrong_type(node, at, &Self::shape());
            return None;
        };
        if nodes.is_empty() {
            let message = format!("{} lists nothing", reader.name());
            let help = format!("write at least one, such as `{}`", Self::shape().sample());
            reader.mistake(Mistake::at(Kind::EmptyCollection, at.clone(), message).help(help));
            return None;
        }
        let mut items = Vec::with_capacity(nodes.len());
        for (nth, node) in nodes.iter().enumerate() {
            let read = reader.within(&nth.to_string(), |reader| reader.value(node, &node.span));
            items.extend(read.map(|value| Item { span: node.span.clone(), value }));
        }
        Some(items)
    }
}

/// Keys that the user chooses, in the order of the file.
#[derive(Clone, Debug)]
pub(crate) struct Map<K, T> {
    /// The entries.
    pub(crate) entries: Vec<Named<T>>,
    key: std::marker::PhantomData<K>,
}

/// What the keys of a [`Map`] are.
pub(crate) trait KeyName {
    /// In words, such as "a topic".
    const WHAT: &'static str;
    /// One that could be written.
    const EXAMPLE: &'static str;
}

impl<K: KeyName, T: Read> Read for Map<K, T> {
    fn shape() -> Shape {
        Shape::Map { key: K::WHAT, example: K::EXAMPLE, value: Box::new(T::shape()) }
    }

    fn read(node: &Node, at: &Span, reader: &mut Reader<'_>) -> Option<Self> {
        let Body::Map(nodes) = &node.body else {
            reader.wrong_type(node, at, &Self::shape());
            return None;
        };
        let mut entries = Vec::with_capacity(nodes.len());
        for entry in nodes.iter().filter(|entry| entry.key != MERGE) {
            if entry.key.contains("${") {
                let message = format!("`{}`: variables are replaced in values, not in keys", entry.key.escape_debug());
                let help = "write the key out";
                reader.mistake(Mistake::at(Kind::InterpolatedKey, entry.span.clone(), message).help(help));
                continue;
            }
            let value = reader.within(&entry.key, |reader| reader.value(&entry.node, &place(entry)));
            entries.push(Named { name: entry.key.clone(), span: entry.span.clone(), value });
        }
        Some(Self { entries, key: std::marker::PhantomData })
    }
}
