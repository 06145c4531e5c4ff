//! What the language looks like, as data: the one source of the reader's checks, of the JSON Schema and of the
//! reference.

/// What a value may be.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// A text.
    Text {
        /// What it is, such as "a topic".
        what: &'static str,
        /// One that could be written.
        example: &'static str,
    },
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Whole {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Bytes, with a unit.
    Size {
        /// The least, in bytes.
        min: u64,
        /// The most, in bytes.
        max: u64,
    },
    /// A time span, with a unit.
    Duration {
        /// The least, in milliseconds.
        min: u64,
        /// The most, in milliseconds.
        max: u64,
    },
    /// Two time spans, `100ms..10s`.
    Range {
        /// The least, in milliseconds.
        min: u64,
        /// The most, in milliseconds.
        max: u64,
    },
    /// One word of several.
    Words(Vec<Word>),
    /// Keys that the language knows.
    Object(Object),
    /// Keys that the user chooses.
    Map {
        /// What the keys are, such as "a topic".
        key: &'static str,
        /// One that could be written.
        example: &'static str,
        /// What stands under each.
        value: Box<Shape>,
    },
    /// Several of one kind.
    List(Box<Shape>),
    /// One of several forms.
    Any(Vec<Shape>),
}

/// A word and what it means.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    /// The word.
    pub(crate) word: &'static str,
    /// What it means.
    pub(crate) doc: String,
}

/// A mapping whose keys the language knows.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// Its name, for the schema's `$defs`.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) doc: String,
    /// Its keys.
    pub(crate) fields: Vec<FieldShape>,
    /// Keys of a later version, each with what to do instead.
    pub(crate) later: &'static [(&'static str, &'static str)],
}

/// A key of an [`Object`].
#[derive(Clone, Debug)]
pub(crate) struct FieldShape {
    /// The key.
    pub(crate) key: &'static str,
    /// What it means.
    pub(crate) doc: String,
    /// Whether it must be written.
    pub(crate) need: Need,
    /// What it may be.
    pub(crate) shape: Shape,
}

/// Whether a key must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// It must.
    Required,
    /// This YAML is read when it is not.
    Default(&'static str),
    /// It need not; the words say what holds then.
    Optional(&'static str),
}

impl Shape {
    /// What it must be, in words that follow "must be".
    pub(crate) fn noun(&self) -> String {
        match self {
            Shape::Text { what, .. } => (*what).to_owned(),
            Shape::Flag => "`true` or `false`".to_owned(),
            Shape::Whole { .. } => "a whole number".to_owned(),
            Shape::Size { .. } => "a size with its unit".to_owned(),
            Shape::Duration { .. } => "a duration with its unit".to_owned(),
            Shape::Range { .. } => "two durations".to_owned(),
            Shape::Words(words) => one_of(words.iter().map(|word| word.word)),
            Shape::Object(object) if object.has_one_required() => format!("`{}`", object.sample()),
            Shape::Object(_) | Shape::Map { .. } => "a mapping".to_owned(),
            Shape::List(_) => "a list".to_owned(),
            Shape::Any(shapes) => shapes.iter().map(Shape::noun).collect::<Vec<_>>().join(" or "),
        }
    }

    /// The smallest thing that could be written.
    pub(crate) fn sample(&self) -> String {
        match self {
            Shape::Text { example, .. } => (*example).to_owned(),
            Shape::Flag => "true".to_owned(),
            Shape::Whole { min, .. } => min.to_string(),
            Shape::Size { .. } => "64MiB".to_owned(),
            Shape::Duration { .. } => "1s".to_owned(),
            Shape::Range { .. } => "100ms..10s".to_owned(),
            Shape::Words(words) => words.first().map_or("", |word| word.word).to_owned(),
            Shape::Object(object) => object.sample(),
            Shape::Map { example, value, .. } => format!("{{ {example}: {} }}", value.sample()),
            Shape::List(item) => format!("[{}]", item.sample()),
            Shape::Any(shapes) => shapes.first().map_or_else(String::new, Shape::sample),
        }
    }
}

impl Object {
    /// Whether one key is all that must be written: it then says best what is meant.
    fn has_one_required(&self) -> bool {
        self.fields.iter().filter(|field| field.need == Need::Required).count() == 1
    }

    fn sample(&self) -> String {
        // `to` may be left out for `outputs` only, and a password for a token: what must be written includes them.
        let must =
            |field: &&FieldShape| field.need == Need::Required || matches!(field.key, "to" | "username" | "password");
        let required: Vec<_> = self.fields.iter().filter(must).collect();
        let shown = if required.is_empty() { self.fields.iter().take(1).collect() } else { required };
        let fields: Vec<_> = shown.iter().map(|field| format!("{}: {}", field.key, field.sample())).collect();
        format!("{{ {} }}", fields.join(", "))
    }
}

impl FieldShape {
    /// The smallest thing that could be written for it.
    pub(crate) fn sample(&self) -> String {
        match self.need {
            Need::Default(text) if text != "{}" => text.to_owned(),
            _ => self.shape.sample(),
        }
    }
}

/// `a`, `b` or `c`, in back-quotes.
pub(crate) fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}
