//! What is wrong with a file: every mistake at once, each with its place, its kind and what to write instead. Refuses
//! to know the language: kinds, places and words only.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode};

/// A place in the file, in bytes.
pub type Span = Range<usize>;

/// Mistakes that are kept; a file with more has one cause that repeats.
pub const MISTAKES_MAX: usize = 50;

/// Defines the kinds with their stable codes.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident => $code:literal,)*) => {
        /// The kind of a mistake. Its code is stable: scripts and searches may rely on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[doc = $doc])* $name,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// The code that is printed.
            pub fn code(self) -> &'static str {
                match self { $(Kind::$name => $code,)* }
            }
        }
    };
}

kinds! {
    /// The file cannot be read.
    Unreadable => "config::unreadable",
    /// The file is larger than a configuration can be.
    TooLarge => "config::too_large",
    /// The file is not UTF-8.
    NotText => "config::not_utf8",
    /// The file is not YAML.
    Syntax => "config::syntax",
    /// The file says nothing.
    Empty => "config::empty_file",
    /// More than one YAML document.
    Documents => "config::several_documents",
    /// A YAML tag.
    Tag => "config::tag",
    /// A YAML merge key.
    MergeKey => "config::merge_key",
    /// Nested too deeply.
    Depth => "config::too_deep",
    /// Aliases that expand to too much.
    Expansion => "config::too_many_values",
    /// An alias inside the value that it stands for.
    AliasLoop => "config::alias_in_itself",
    /// A key that is not a text.
    KeyType => "config::key_type",
    /// A key twice in one mapping.
    DuplicateKey => "config::duplicate_key",
    /// A key that does not exist.
    UnknownKey => "config::unknown_key",
    /// A key that must be there.
    MissingKey => "config::missing_key",
    /// A key or word of a later version.
    NotAvailable => "config::not_available_yet",
    /// A key without a value.
    NoValue => "config::no_value",
    /// A value of another type.
    WrongType => "config::wrong_type",
    /// A word that is not one of the choice.
    UnknownWord => "config::unknown_word",
    /// A number outside its bounds.
    OutOfBounds => "config::out_of_bounds",
    /// A size or a duration without its unit.
    NoUnit => "config::no_unit",
    /// A unit that does not exist.
    UnknownUnit => "config::unknown_unit",
    /// A number, size, duration, range or time that cannot be read.
    Malformed => "config::malformed_value",
    /// A list or mapping that must not be empty.
    EmptyCollection => "config::nothing_listed",
    /// `${...}` that cannot be read.
    Interpolation => "config::interpolation",
    /// A variable that is not set.
    MissingVariable => "config::missing_variable",
    /// `${...}` in a key.
    InterpolatedKey => "config::interpolated_key",
    /// A file that the configuration names does not exist or is no file.
    MissingFile => "config::missing_file",
    /// A secret's file that cannot be used.
    SecretFile => "config::secret_file",
    /// A name that cannot be used.
    BadName => "config::bad_name",
    /// A name that Kafka does not accept for a topic.
    BadTopic => "config::bad_topic",
    /// A broker address.
    BadBroker => "config::bad_broker",
    /// A server's address.
    BadServer => "config::bad_server",
    /// A name that NATS does not accept for a stream or a durable consumer.
    BadStream => "config::bad_stream",
    /// A subject that cannot be used where it stands.
    BadSubject => "config::bad_subject",
    /// Settings of a stream that do not fit each other.
    StreamSettings => "config::stream_settings",
    /// Not one broker, but none or two.
    OneBroker => "config::one_broker",
    /// More than one way to say who this is, or half of one.
    NatsKeys => "config::nats_sign_in",
    /// A digest.
    BadDigest => "config::bad_digest",
    /// TLS with half of a client certificate.
    TlsPair => "config::tls_pair",
    /// A librdkafka property that breaks a guarantee or that Fluxmill sets itself.
    RefusedProperty => "config::refused_property",
    /// A property that librdkafka does not know.
    UnknownProperty => "config::unknown_property",
    /// A property that the columnar client cannot honour.
    NotColumnar => "config::not_for_columnar",
    /// Two properties that cannot both hold.
    PropertiesClash => "config::properties_clash",
    /// Keys of SASL that do not go with the mechanism.
    SaslKeys => "config::sasl_keys",
    /// A connection that is not there.
    UnknownConnection => "config::unknown_connection",
    /// Several connections, and none chosen.
    WhichConnection => "config::which_connection",
    /// `to` and `outputs`, or neither.
    ToOrOutputs => "config::to_or_outputs",
    /// Two pipelines share a group and a topic, or a member.
    SharedGroup => "config::shared_group",
    /// A pipeline reads what it writes.
    OwnInput => "config::reads_its_output",
    /// `delivery: exactly_once` where it cannot be kept.
    ExactlyOnce => "config::exactly_once",
    /// Pipelines form a loop.
    Loop => "config::loop",
    /// A dead letter that is an input.
    DeadLetterIsInput => "config::dead_letter_is_input",
    /// A dead letter that is an output.
    DeadLetterIsOutput => "config::dead_letter_is_output",
    /// A topic is listed twice.
    DuplicateTopic => "config::duplicate_topic",
    /// A function may run longer than the broker waits for the consumer.
    TimeoutAbovePoll => "config::timeout_above_poll_interval",
    /// A function has less memory than a batch may have bytes.
    MemoryBelowBatch => "config::memory_below_batch",
    /// A component that was refused.
    Function => "function::refused",
    /// A topic that the broker does not know or refuses.
    Topic => "broker::topic",
    /// A broker that cannot be used.
    Connection => "broker::connection",
}

/// One mistake.
#[derive(Clone, Debug)]
pub struct Mistake {
    /// The kind.
    pub kind: Kind,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where; `None` for the file as a whole.
    pub span: Option<Span>,
    /// The words under the snippet.
    pub label: String,
    /// Another place that belongs to it, with its words.
    pub other: Option<(Span, String)>,
    /// What to write instead.
    pub help: Option<String>,
}

impl Mistake {
    /// A mistake at a place.
    pub fn at(kind: Kind, span: Span, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), span: Some(span), label: String::new(), other: None, help: None }
    }

    /// A mistake of the file as a whole.
    pub fn whole(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), span: None, label: String::new(), other: None, help: None }
    }

    /// The words under the snippet.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// What to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Another place that belongs to it.
    #[must_use]
    pub fn other(mut self, span: Span, label: impl Into<String>) -> Self {
        self.other = Some((span, label.into()));
        self
    }
}

/// The file as messages show it: its name as the user gave it, and its text with every secret masked.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's name.
    pub file: String,
    /// The text; secrets are stars.
    pub text: Arc<str>,
}

impl Source {
    /// Line and column of a byte, both from 1; columns count characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// Every mistake of a file, in the order of the file.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    source: Source,
    mistakes: Vec<Mistake>,
}

impl ConfigErrors {
    /// Puts the mistakes in the order of the file.
    pub(crate) fn new(source: Source, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.span.as_ref().map_or(0, |span| span.start));
        // An alias shows the mistakes of what it stands for once more.
        mistakes.dedup_by(|a, b| (a.kind, &a.span, &a.message) == (b.kind, &b.span, &b.message));
        Self { source, mistakes }
    }

    /// The mistakes, in the order of the file.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    /// Adds the mistakes of another look at the same file.
    pub fn merge(&mut self, other: ConfigErrors) {
        let mut mistakes = std::mem::take(&mut self.mistakes);
        mistakes.extend(other.mistakes);
        *self = Self::new(self.source.clone(), mistakes);
    }

    /// Line and column, both from 1, of a mistake.
    pub fn position(&self, mistake: &Mistake) -> Option<(usize, usize)> {
        mistake.span.as_ref().map(|span| self.source.position(span.start))
    }

    /// The mistakes with their snippets, for a terminal of `width` columns.
    pub fn render(&self, color: bool, width: usize) -> String {
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width.max(40)).with_wrap_lines(false);
        let code = NamedSource::new(&self.source.file, self.source.text.to_string());
        let mut out = String::new();
        for mistake in self.mistakes.iter().take(MISTAKES_MAX) {
            let report = Report { mistake, file: &self.source.file, code: &code };
            if handler.render_report(&mut out, &report).is_err() {
                out.push_str(&mistake.message);
            }
            out.push('\n');
        }
        match self.mistakes.len() {
            1 => out.push_str("1 mistake\n"),
            n if n > MISTAKES_MAX => out.push_str(&format!("{n} mistakes, the first {MISTAKES_MAX} are shown\n")),
            n => out.push_str(&format!("{n} mistakes\n")),
        }
        out
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, mistake) in self.mistakes.iter().take(MISTAKES_MAX).enumerate() {
            let separator = if nth == 0 { "" } else { "\n" };
            match self.position(mistake) {
                Some((line, column)) => {
                    write!(f, "{separator}{}:{line}:{column}: {}", self.source.file, mistake.message)?;
                }
                None => write!(f, "{separator}{}: {}", self.source.file, mistake.message)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A mistake together with its file, as miette wants to see it.
struct Report<'a> {
    mistake: &'a Mistake,
    file: &'a str,
    code: &'a NamedSource<String>,
}

impl fmt::Debug for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.mistake, f)
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistake.span {
            Some(_) => f.write_str(&self.mistake.message),
            None => write!(f, "{}: {}", self.file, self.mistake.message),
        }
    }
}

impl std::error::Error for Report<'_> {}

impl Diagnostic for Report<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.mistake.kind.code()))
    }

    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.mistake.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.mistake.span.as_ref().map(|_| self.code as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.mistake.span.clone()?;
        let label = (!self.mistake.label.is_empty()).then(|| self.mistake.label.clone());
        let first = LabeledSpan::new_primary_with_span(label, span);
        let other = self.mistake.other.clone().map(|(span, label)| LabeledSpan::new_with_span(Some(label), span));
        Some(Box::new(std::iter::once(first).chain(other)))
    }
}
