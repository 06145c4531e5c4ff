//! The events of one call, by reference. Nothing is copied out of the columns until it is asked for.

use std::ops::Range;

use serde::Deserialize;

use crate::settings::{Settings, Source};
use crate::{Emit, Error, EventBatch, HeaderColumn, OrFail, Outcome};

/// The events that one call of a function gets.
///
/// A handler over single events never sees it. A handler over batches prepares what all events share, then goes
/// through them by [`each`](Batch::each), or works on the [`columns`](Batch::columns) themselves:
///
/// ```
/// use fluxmill_function::{Batch, Error, OrFail, Outcome, function};
///
/// fn at_least(batch: Batch) -> Result<Outcome, Error> {
///     let least: usize = batch.config("least_bytes").unwrap_or("10").parse().or_reject("least_bytes")?;
///     Ok(batch.each(|event, out| {
///         if event.value().is_some_and(|value| value.len() >= least) {
///             out.forward(&event);
///         }
///         Ok(())
///     }))
/// }
/// function!(at_least);
/// ```
#[derive(Debug)]
pub struct Batch {
    columns: EventBatch,
    settings: Settings,
}

impl Batch {
    pub(crate) fn new(columns: EventBatch, source: Source) -> Self {
        Self { columns, settings: Settings::new(source) }
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.columns.timestamps.len()
    }

    /// Whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The events, in order.
    pub fn events(&self) -> impl ExactSizeIterator<Item = Event<'_>> + DoubleEndedIterator {
        (0..self.len()).map(move |row| Event { batch: self, row })
    }

    /// One event.
    ///
    /// # Panics
    /// When `row` is out of range.
    pub fn event(&self, row: usize) -> Event<'_> {
        assert!(row < self.len(), "row {row} of a batch of {}", self.len());
        Event { batch: self, row }
    }

    /// Runs a handler over each event and gathers what it emits. An event that fails after it emitted leaves
    /// nothing behind but its failure.
    pub fn each<'b>(&'b self, mut handler: impl FnMut(Event<'b>, &mut Emit<'b>) -> Result<(), Error>) -> Outcome {
        let mut out = Emit::new(self);
        for event in self.events() {
            out.begin(event.row);
            let result = handler(event, &mut out);
            out.end(result);
        }
        out.finish()
    }

    /// The events as columns, the way they crossed into the sandbox.
    pub fn columns(&self) -> &EventBatch {
        &self.columns
    }

    /// The columns, to be taken apart and given back.
    pub fn into_columns(self) -> EventBatch {
        self.columns
    }

    /// A value from the function's `config:` in the pipeline file.
    pub fn config(&self, name: &str) -> Option<&str> {
        self.settings.config(name)
    }

    /// The index of a named output, for [`Outcome::outputs`].
    ///
    /// # Errors
    /// The pipeline has no such output; the reason names those it has.
    pub fn output(&self, name: &str) -> Result<u8, Error> {
        self.settings.output(name)
    }
}

/// One event of a batch, by reference. Copying it copies no bytes.
#[derive(Clone, Copy, Debug)]
pub struct Event<'b> {
    batch: &'b Batch,
    row: usize,
}

impl<'b> Event<'b> {
    /// The key; `None` when the event has none.
    #[inline]
    pub fn key(&self) -> Option<&'b [u8]> {
        self.batch.columns.keys.get(self.row)
    }

    /// The value; `None` when the event is a tombstone.
    #[inline]
    pub fn value(&self) -> Option<&'b [u8]> {
        self.batch.columns.values.get(self.row)
    }

    /// Whether the event has no value: it says that its key was deleted.
    pub fn is_tombstone(&self) -> bool {
        self.batch.columns.values.is_null(self.row)
    }

    /// The value, parsed as JSON. What is parsed may borrow from the event (`&str`, `Cow<str>`).
    ///
    /// # Errors
    /// Reject: the event is a tombstone, or its value is not the JSON that `T` asks for.
    pub fn json<T: Deserialize<'b>>(&self) -> Result<T, Error> {
        let value = self.value().or_reject("a tombstone has no JSON")?;
        serde_json::from_slice(value).or_reject("not the expected JSON")
    }

    /// The value as text.
    ///
    /// # Errors
    /// Reject: the event is a tombstone, or its value is not UTF-8.
    pub fn text(&self) -> Result<&'b str, Error> {
        let value = self.value().or_reject("a tombstone has no text")?;
        std::str::from_utf8(value).or_reject("not UTF-8")
    }

    /// The headers, in order, duplicates and null values included.
    #[inline]
    pub fn headers(&self) -> Headers<'b> {
        self.batch.columns.headers.row(self.row)
    }

    /// The value of the last header with this name, the one that counts by Kafka's custom. `None` when there is none,
    /// or when its value is null; [`headers`](Self::headers) tells the two apart.
    pub fn header(&self, name: impl AsRef<[u8]>) -> Option<&'b [u8]> {
        self.headers().rfind(|&(other, _)| other == name.as_ref()).and_then(|(_, value)| value)
    }

    /// When the event came to be, in milliseconds since the Unix epoch.
    pub fn timestamp(&self) -> i64 {
        self.batch.columns.timestamps[self.row]
    }

    /// The event's place in its batch.
    pub fn row(&self) -> usize {
        self.row
    }

    /// Whether this is row `row` of `batch`.
    #[inline]
    pub(crate) fn is(&self, batch: &Batch, row: usize) -> bool {
        self.row == row && std::ptr::eq(self.batch, batch)
    }
}

/// The headers of one event, in order: (name, value or null).
#[derive(Clone, Debug)]
pub struct Headers<'b> {
    pub(crate) column: &'b HeaderColumn,
    pub(crate) range: Range<usize>,
}

impl<'b> Headers<'b> {
    fn entry(&self, entry: usize) -> (&'b [u8], Option<&'b [u8]>) {
        (self.column.names.get(entry).unwrap_or_default(), self.column.values.get(entry))
    }
}

impl<'b> Iterator for Headers<'b> {
    type Item = (&'b [u8], Option<&'b [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.range.next().map(|entry| self.entry(entry))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

impl DoubleEndedIterator for Headers<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.range.next_back().map(|entry| self.entry(entry))
    }
}

impl ExactSizeIterator for Headers<'_> {}
