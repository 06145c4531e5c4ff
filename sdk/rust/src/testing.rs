//! Runs a function on plain events, without a sandbox and without a broker: for a function's own tests.
//!
//! ```
//! use fluxmill_function::testing::{Input, Runner};
//! use fluxmill_function::{Emit, Error, Event};
//!
//! fn only_short(event: Event, out: &mut Emit) -> Result<(), Error> {
//!     match event.text()?.len() {
//!         0..=5 => out.forward(&event),
//!         _ => out.to("long").forward(&event),
//!     }
//!     Ok(())
//! }
//!
//! let run = Runner::new(only_short).outputs(["short", "long"]).call([
//!     Input::new("abc").key("1"),
//!     Input::tombstone().key("2"),
//!     Input::new("abcdefgh").key("3"),
//! ]).unwrap();
//! assert_eq!(run.to("short").map(|event| event.text()).collect::<Vec<_>>(), ["abc"]);
//! assert_eq!(run.to("long").map(|event| event.text()).collect::<Vec<_>>(), ["abcdefgh"]);
//! assert_eq!(run.failures[0].reason, "a tombstone has no text");
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::handler::Handler;
use crate::log::Level;
use crate::settings::Source;
use crate::{Batch, BinaryColumn, BinarySource, Error, EventBatch, Failure, HeaderColumn, HeaderSource, Outcome};

/// Headers of one event, owned.
pub type OwnedHeaders = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// An event for a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: OwnedHeaders,
    timestamp: i64,
}

impl Input {
    /// An event with this value, without key and headers, of the time 0.
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// An event with this value as JSON.
    ///
    /// # Panics
    /// When the value has no JSON form.
    pub fn json(value: &(impl Serialize + ?Sized)) -> Self {
        Self::new(serde_json::to_vec(value).expect("the value has a JSON form"))
    }

    /// An event without a value.
    pub fn tombstone() -> Self {
        Self::default()
    }

    /// Gives the event a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Adds a header whose value is null.
    #[must_use]
    pub fn null_header(mut self, name: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), None));
        self
    }

    /// Sets the event's time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamp(mut self, milliseconds: i64) -> Self {
        self.timestamp = milliseconds;
        self
    }
}

/// An event that a function published, as the pipeline would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The place of the event that caused it among the inputs.
    pub row: usize,
    /// The name of its output.
    pub output: String,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None`: a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: OwnedHeaders,
}

impl Published {
    /// The value as text.
    ///
    /// # Panics
    /// When it is a tombstone, or not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value, not a tombstone")).expect("UTF-8")
    }

    /// The value, parsed as JSON.
    ///
    /// # Panics
    /// When it is a tombstone, or not the JSON that `T` asks for.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(self.text()).expect("the JSON that was asked for")
    }

    /// The value of the last header with this name, as text; `None` when there is none or it is null.
    ///
    /// # Panics
    /// When it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rfind(|(other, _)| other == name.as_bytes())?;
        value.as_deref().map(|value| std::str::from_utf8(value).expect("UTF-8"))
    }
}

/// A line that a function wrote.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// How grave it is.
    pub level: Level,
    /// The message.
    pub message: String,
    /// Its fields, in order.
    pub fields: Vec<(String, String)>,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Run {
    /// The published events, in order.
    pub published: Vec<Published>,
    /// The events that failed: row, kind, reason.
    pub failures: Vec<Failure>,
    /// The rows that were neither published nor failed.
    pub dropped: Vec<usize>,
    /// What the function wrote to the log.
    pub logs: Vec<LogLine>,
}

impl Run {
    /// The events published to one output.
    pub fn to<'r>(&'r self, output: &'r str) -> impl Iterator<Item = &'r Published> {
        self.published.iter().filter(move |event| event.output == output)
    }

    /// The failure of one input, if it failed.
    pub fn failure(&self, row: usize) -> Option<&Failure> {
        self.failures.iter().find(|failure| failure.row as usize == row)
    }
}

/// Calls a function with plain events, under the settings a pipeline file would give it.
#[derive(Clone, Debug)]
pub struct Runner<H, Form> {
    handler: H,
    config: BTreeMap<String, String>,
    outputs: Vec<String>,
    form: PhantomData<fn(Form)>,
}

impl<Form, H: Handler<Form>> Runner<H, Form> {
    /// A runner without `config:`, with the one output that `to:` gives, named `default`.
    pub fn new(handler: H) -> Self {
        Self { handler, config: BTreeMap::new(), outputs: vec!["default".to_owned()], form: PhantomData }
    }

    /// Adds a value to `config:`.
    #[must_use]
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.insert(name.into(), value.into());
        self
    }

    /// Names the pipeline's `outputs:`.
    #[must_use]
    pub fn outputs<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.outputs = names.into_iter().map(Into::into).collect();
        self
    }

    /// Runs the function over one batch.
    ///
    /// # Errors
    /// The function failed the batch as a whole.
    ///
    /// # Panics
    /// When the function panics, or returns an outcome that the host would not believe.
    pub fn call(&self, inputs: impl IntoIterator<Item = Input>) -> Result<Run, Error> {
        let inputs: Vec<Input> = inputs.into_iter().collect();
        let source = Source::Fixed { config: self.config.clone(), outputs: self.outputs.clone() };
        let recorder = Recorder::start();
        let outcome = self.handler.run(Batch::new(columns(&inputs), source));
        let logs = recorder.finish();
        resolve(&inputs, &self.outputs, outcome?, logs)
            .map_err(|lie| panic!("the host would refuse this outcome: {lie}"))
    }
}

/// Plain events as the columns of the contract.
pub fn columns(inputs: &[Input]) -> EventBatch {
    let mut headers = HeaderColumn::none();
    if inputs.iter().any(|input| !input.headers.is_empty()) {
        headers = HeaderColumn::new();
        for input in inputs {
            for (name, value) in &input.headers {
                headers.push(name, value.as_deref());
            }
            headers.end_row();
        }
    }
    EventBatch {
        keys: inputs.iter().map(|input| input.key.as_deref()).collect(),
        values: inputs.iter().map(|input| input.value.as_deref()).collect(),
        headers,
        timestamps: inputs.iter().map(|input| input.timestamp).collect(),
    }
}

/// Reads an outcome the way the host does.
fn resolve(inputs: &[Input], outputs: &[String], outcome: Outcome, logs: Vec<LogLine>) -> Result<Run, String> {
    check(inputs.len(), outputs.len(), &outcome)?;
    let mut ended = vec![false; inputs.len()];
    let mut published = Vec::with_capacity(outcome.causes.len());
    for (at, &row) in outcome.causes.iter().enumerate() {
        let input = &inputs[row as usize];
        ended[row as usize] = true;
        published.push(Published {
            row: row as usize,
            output: outputs[outcome.outputs.get(at).map_or(0, |&output| output as usize)].clone(),
            key: cell(&outcome.keys, at, &input.key),
            value: cell(&outcome.values, at, &input.value),
            headers: match &outcome.headers {
                HeaderSource::Inherit => input.headers.clone(),
                HeaderSource::Replace(column) => {
                    column.row(at).map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).collect()
                }
            },
        });
    }
    for failure in &outcome.failures {
        if std::mem::replace(&mut ended[failure.row as usize], true) {
            return Err(format!("row {} failed, and was published or failed once more", failure.row));
        }
    }
    let dropped = (0..inputs.len()).filter(|&row| !ended[row]).collect();
    Ok(Run { published, failures: outcome.failures, dropped, logs })
}

fn cell(source: &BinarySource, at: usize, inherited: &Option<Vec<u8>>) -> Option<Vec<u8>> {
    match source {
        BinarySource::Inherit => inherited.clone(),
        BinarySource::Replace(column) => column.get(at).map(<[u8]>::to_vec),
    }
}

fn check(rows: usize, outputs: usize, outcome: &Outcome) -> Result<(), String> {
    let published = outcome.causes.len();
    let failed = outcome.failures.iter().map(|failure| failure.row);
    if let Some(row) = outcome.causes.iter().copied().chain(failed).find(|&row| row as usize >= rows) {
        return Err(format!("row {row} of a batch of {rows}"));
    }
    if !outcome.outputs.is_empty() && outcome.outputs.len() != published {
        return Err(format!("{} outputs for {published} published events", outcome.outputs.len()));
    }
    if let Some(&output) = outcome.outputs.iter().find(|&&output| output as usize >= outputs) {
        return Err(format!("output {output} of a pipeline with {outputs}"));
    }
    for (name, source) in [("keys", &outcome.keys), ("values", &outcome.values)] {
        if let BinarySource::Replace(column) = source {
            check_column(name, column, published)?;
        }
    }
    if let HeaderSource::Replace(headers) = &outcome.headers {
        let entries = headers.rows.last().map_or(0, |&end| end as usize);
        if !headers.rows.is_empty() && headers.rows.len() != published + 1 {
            return Err(format!("{} header rows for {published} published events", headers.rows.len() - 1));
        }
        if !headers.rows.is_sorted() {
            return Err("header rows that go back".to_owned());
        }
        check_column("header names", &headers.names, entries)?;
        check_column("header values", &headers.values, entries)?;
        if (0..entries).any(|entry| headers.names.is_null(entry)) {
            return Err("a header without a name".to_owned());
        }
    }
    Ok(())
}

fn check_column(name: &str, column: &BinaryColumn, rows: usize) -> Result<(), String> {
    if column.offsets.len() != rows + 1 {
        return Err(format!("{} offsets of {name} for {rows} rows", column.offsets.len()));
    }
    if !column.offsets.is_sorted() || column.offsets[rows] as usize > column.data.len() {
        return Err(format!("offsets of {name} that go back or beyond the data"));
    }
    if !column.validity.is_empty() && column.validity.len() < rows.div_ceil(8) {
        return Err(format!("{} bytes of validity of {name} for {rows} rows", column.validity.len()));
    }
    Ok(())
}

thread_local! {
    /// The lines of the call that runs on this thread, while one runs.
    static LINES: RefCell<Option<Vec<LogLine>>> = const { RefCell::new(None) };
}

/// Takes a line for the call that runs on this thread; there is nobody to read others.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn record(level: Level, message: &str, fields: Vec<(String, String)>) {
    LINES.with_borrow_mut(|lines| {
        if let Some(lines) = lines {
            lines.push(LogLine { level, message: message.to_owned(), fields });
        }
    });
}

struct Recorder;

impl Recorder {
    fn start() -> Self {
        LINES.set(Some(Vec::new()));
        Self
    }

    fn finish(self) -> Vec<LogLine> {
        LINES.take().unwrap_or_default()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        LINES.set(None);
    }
}
