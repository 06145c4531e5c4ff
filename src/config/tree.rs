//! The YAML text as a tree in which every value knows its place. Refuses what could hide something: duplicate keys,
//! merge keys, tags, several documents, nesting and aliases without bound. Knows nothing of the language.

use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::error::{Kind, Mistake, Span};

/// Bytes of a file at most.
pub(crate) const BYTES_MAX: usize = 1 << 20;
/// Values of a file at most, with what aliases repeat.
const VALUES_MAX: usize = 50_000;
/// Levels at most.
const DEPTH_MAX: usize = 32;

/// The key that is no key: its mistake was noted, and readers pass over it.
pub(crate) const MERGE: &str = "<<";

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    /// The place; of a list or mapping, the place where it begins.
    pub(crate) span: Span,
    /// The value.
    pub(crate) body: Body,
    /// The values in it, with what aliases repeat.
    weight: usize,
}

/// A value.
#[derive(Debug)]
pub(crate) enum Body {
    /// A text, number, ...: as it was written, quotes and escapes resolved.
    Scalar {
        /// The text.
        text: String,
        /// Whether it was written without quotes.
        plain: bool,
    },
    /// A list.
    List(Vec<Rc<Node>>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// One key of a mapping and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// The key's place.
    pub(crate) span: Span,
    /// The value.
    pub(crate) node: Rc<Node>,
}

impl Node {
    /// Whether there is no value: nothing, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        match &self.body {
            Body::Scalar { text, plain: true } => matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"),
            _ => false,
        }
    }

    /// What it is, in words.
    pub(crate) fn noun(&self) -> &'static str {
        match &self.body {
            _ if self.is_null() => "empty",
            Body::Scalar { .. } => "a single value",
            Body::List(_) => "a list",
            Body::Map(_) => "a mapping",
        }
    }
}

/// Reads the text. Mistakes that leave the tree whole are added to `mistakes`; `None` means that it could not be read.
pub(crate) fn parse(text: &str, mistakes: &mut Vec<Mistake>) -> Option<Rc<Node>> {
    let mut options = granit_parser::options! { flow_nesting_limit: 100, block_nesting_limit: 100 };
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder { parser, text, anchors: HashMap::new(), mistakes };
    match builder.file() {
        Ok(node) => node,
        Err(mistake) => {
            builder.mistakes.push(*mistake);
            None
        }
    }
}

struct Builder<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    text: &'a str,
    anchors: HashMap<usize, Rc<Node>>,
    mistakes: &'a mut Vec<Mistake>,
}

type Failed = Box<Mistake>;

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Failed> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let range = span.byte_range().unwrap_or(self.text.len()..self.text.len());
                Ok((event, range.start.min(self.text.len())..range.end.min(self.text.len())))
            }
            Some(Err(error)) => Err(Box::new(syntax(&error, self.text))),
            None => Ok((Event::StreamEnd, self.text.len()..self.text.len())),
        }
    }

    fn file(&mut self) -> Result<Option<Rc<Node>>, Failed> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                _ if root.is_some() => {
                    let message = "the file holds more than one YAML document";
                    return Err(Box::new(
                        Mistake::at(Kind::Documents, span, message)
                            .label("the second one begins here")
                            .help("write one chain per file, and delete the line `---` between them"),
                    ));
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Rc<Node>, Failed> {
        if depth > DEPTH_MAX {
            let message = format!("nested more than {DEPTH_MAX} levels deep");
            let help = "a chain needs no more than 8 levels; look for a missing closing bracket";
            return Err(Box::new(Mistake::at(Kind::Depth, first_char(self.text, &span), message).help(help)));
        }
        if event.tag().is_some() {
            let help = "delete the word that begins with `!`; every value is read as its key asks";
            self.mistakes.push(Mistake::at(Kind::Tag, span.clone(), "YAML tags have no meaning here").help(help));
        }
        let anchor = event.anchor_id();
        let (body, span, weight) = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                (Body::Scalar { text: text.into_owned(), plain }, span, 1)
            }
            Event::SequenceStart(..) => self.list(&span, depth)?,
            Event::MappingStart(..) => self.map(&span, depth)?,
            Event::Alias(id) => return self.alias(id, span),
            _ => {
                let message = "a value is missing";
                return Err(Box::new(Mistake::at(Kind::Syntax, span, message).help("write `key: value`")));
            }
        };
        if weight > VALUES_MAX {
            let message = format!("the file stands for more than {VALUES_MAX} values");
            let help = "aliases repeat what they stand for; write fewer of them";
            return Err(Box::new(Mistake::at(Kind::Expansion, first_char(self.text, &span), message).help(help)));
        }
        let node = Rc::new(Node { span, body, weight });
        if let Some(id) = anchor {
            self.anchors.insert(id, Rc::clone(&node));
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<Rc<Node>, Failed> {
        self.anchors.get(&id).map(Rc::clone).ok_or_else(|| {
            let message = "an alias stands inside the value that it stands for";
            Box::new(Mistake::at(Kind::AliasLoop, span, message).help("write the value out"))
        })
    }

    fn list(&mut self, span: &Span, depth: usize) -> Result<(Body, Span, usize), Failed> {
        let (mut items, mut weight) = (Vec::new(), 1);
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok((Body::List(items), first_char(self.text, span), weight)),
                (event, span) => {
                    let item = self.node(event, span, depth + 1)?;
                    weight += item.weight;
                    items.push(item);
                }
            }
        }
    }

    fn map(&mut self, span: &Span, depth: usize) -> Result<(Body, Span, usize), Failed> {
        let (mut entries, mut weight): (Vec<Entry>, usize) = (Vec::new(), 1);
        loop {
            let (event, key_span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok((Body::Map(entries), first_char(self.text, span), weight));
            }
            let key = self.node(event, key_span, depth + 1)?;
            let (event, value_span) = self.next()?;
            let node = self.node(event, value_span, depth + 1)?;
            weight += node.weight + 1;
            let Body::Scalar { text, .. } = &key.body else {
                let message = format!("a key must be a single word, not {}", key.noun());
                let help = "write `key: value`; put quotes around a value that begins with `{` or `[`";
                self.mistakes.push(Mistake::at(Kind::KeyType, key.span.clone(), message).help(help));
                continue;
            };
            if text == MERGE {
                let help = "repeat the keys, or give a whole value a name by `&name` and repeat it by `*name`";
                let message = "merge keys (`<<`) are not part of the language";
                self.mistakes.push(Mistake::at(Kind::MergeKey, key.span.clone(), message).help(help));
                entries.push(Entry { key: MERGE.to_owned(), span: key.span.clone(), node });
                continue;
            }
            if let Some(first) = entries.iter().find(|entry| entry.key == *text) {
                self.mistakes.push(
                    Mistake::at(Kind::DuplicateKey, key.span.clone(), format!("`{text}` is written twice"))
                        .label("again here")
                        .other(first.span.clone(), "first here")
                        .help("keep one of them"),
                );
                continue;
            }
            entries.push(Entry { key: text.clone(), span: key.span.clone(), node });
        }
    }
}

/// The first character of a place: lists and mappings may span many lines.
fn first_char(text: &str, span: &Span) -> Span {
    let length = text[span.start..].chars().next().map_or(0, char::len_utf8);
    span.start..span.start + length
}

fn syntax(error: &ScanError, text: &str) -> Mistake {
    let mut start = error.marker().byte_offset().unwrap_or(text.len()).min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    // At the end of the file there is nothing to show: point at the last thing that was written.
    if text[start..].trim().is_empty() {
        start = text.trim_end().char_indices().next_back().map_or(0, |(at, _)| at);
    }
    let help = match error.kind() {
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation => {
            "indent with spaces, two for each level"
        }
        ErrorKind::UnknownAnchor => {
            "an alias `*name` needs a value marked `&name` above it; quote a text that begins with `*`"
        }
        ErrorKind::UnclosedQuotedScalar => "add the closing quote",
        ErrorKind::UnclosedFlowCollection { open: '[' } | ErrorKind::ExpectedFlowSequenceSeparator => {
            "lists are written `[a, b]`: look for a missing comma or `]`"
        }
        ErrorKind::UnclosedFlowCollection { .. } | ErrorKind::ExpectedFlowMappingSeparator => {
            "mappings are written `{ key: value, key: value }`: look for a missing comma or `}`"
        }
        ErrorKind::SimpleKeyExpected => "write `key: value`, with a space after the colon",
        _ => {
            "write `key: value`, two spaces for each level, and quotes around texts that begin with one of { [ & * # ? | > % @ ` !"
        }
    };
    let message = format!("this is not YAML: {}", error.kind());
    Mistake::at(Kind::Syntax, first_char(text, &(start..start)), message).help(help)
}
