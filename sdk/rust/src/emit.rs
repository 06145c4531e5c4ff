//! What a handler publishes. Emissions go straight into columns; an event that fails takes its own back.

mod columns;

use std::io;

use serde::Serialize;

use crate::{Batch, Error, Event, Failure, Outcome};
use columns::{Bytes, Cell, HeaderRows};

/// Where a handler puts what it publishes: any number of events for each one it gets, none included.
///
/// ```
/// use fluxmill_function::{Emit, Error, Event};
///
/// fn route(event: Event, out: &mut Emit) -> Result<(), Error> {
///     match event.header("kind") {
///         Some(b"audit") => out.to("audit").forward(&event),
///         Some(b"noise") => {}
///         _ => out.forward(&event),
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Emit<'b> {
    batch: &'b Batch,
    row: usize,
    /// The number of published events before the current input event.
    before: usize,
    /// A mistake that no `Result` carried; it fails the current event.
    mistake: Option<Error>,
    causes: Vec<u32>,
    outputs: Vec<u8>,
    keys: Bytes<'b>,
    values: Bytes<'b>,
    headers: HeaderRows<'b>,
    failures: Vec<Failure>,
}

impl<'b> Emit<'b> {
    pub(crate) fn new(batch: &'b Batch) -> Self {
        let columns = batch.columns();
        Self {
            batch,
            row: 0,
            before: 0,
            mistake: None,
            causes: Vec::with_capacity(batch.len()),
            outputs: Vec::new(),
            keys: Bytes::new(&columns.keys),
            values: Bytes::new(&columns.values),
            headers: HeaderRows::new(&columns.headers),
            failures: Vec::new(),
        }
    }

    /// Publishes the event as it is, to the first output: key, value, headers and all. Nothing is copied.
    #[inline]
    pub fn forward(&mut self, event: &Event<'_>) {
        self.target(0).forward(event);
    }

    /// A new event for the first output, without key and headers.
    #[inline]
    pub fn event(&mut self) -> Draft<'_, 'b> {
        self.target(0).event()
    }

    /// A new event for the first output with key and headers of `event`. Nothing of these is copied.
    #[inline]
    pub fn event_from(&mut self, event: &Event<'_>) -> Draft<'_, 'b> {
        self.target(0).event_from(event)
    }

    /// One of the pipeline's `outputs:`, by its name. An unknown name fails the current event (reject) with a reason
    /// that names the outputs there are, whatever the handler returns.
    pub fn to(&mut self, output: &str) -> Target<'_, 'b> {
        match self.batch.output(output) {
            Ok(output) => self.target(output),
            Err(error) => {
                self.mistake.get_or_insert(error);
                self.target(0)
            }
        }
    }

    /// A value from the function's `config:` in the pipeline file. The host is asked once for each batch.
    pub fn config(&self, name: &str) -> Option<&'b str> {
        self.batch.config(name)
    }

    #[inline]
    fn target(&mut self, output: u8) -> Target<'_, 'b> {
        Target { emit: self, output }
    }

    #[inline]
    pub(crate) fn begin(&mut self, row: usize) {
        self.row = row;
        self.before = self.causes.len();
    }

    #[inline]
    pub(crate) fn end(&mut self, result: Result<(), Error>) {
        let error = match (self.mistake.take(), result) {
            (None, Ok(())) => return,
            (Some(mistake), _) => mistake,
            (None, Err(error)) => error,
        };
        self.roll_back();
        self.failures.push(Failure { row: row_number(self.row), kind: error.kind(), reason: error.into_reason() });
    }

    fn roll_back(&mut self) {
        self.causes.truncate(self.before);
        self.outputs.truncate(self.before);
        self.keys.truncate(self.before);
        self.values.truncate(self.before);
        self.headers.truncate(self.before);
    }

    #[inline]
    fn publish(&mut self, output: u8, key: Cell, headers: Cell, value: Cell) {
        self.keys.push(key, &self.causes, self.row);
        self.headers.push(headers, &self.causes, self.row);
        self.values.push(value, &self.causes, self.row);
        if output != 0 && self.outputs.is_empty() {
            self.outputs.resize(self.causes.len(), 0);
        }
        if output != 0 || !self.outputs.is_empty() {
            self.outputs.push(output);
        }
        self.causes.push(row_number(self.row));
    }

    pub(crate) fn finish(self) -> Outcome {
        Outcome {
            causes: self.causes,
            outputs: self.outputs,
            keys: self.keys.finish(),
            values: self.values.finish(),
            headers: self.headers.finish(),
            failures: self.failures,
        }
    }
}

#[inline]
fn row_number(row: usize) -> u32 {
    u32::try_from(row).expect("a batch has fewer than 2^32 rows")
}

/// One output of the pipeline; from [`Emit::to`].
#[derive(Debug)]
#[must_use = "an output publishes nothing until it is told what"]
pub struct Target<'e, 'b> {
    emit: &'e mut Emit<'b>,
    output: u8,
}

impl<'e, 'b> Target<'e, 'b> {
    /// Publishes the event as it is: key, value, headers and all. Nothing is copied.
    #[inline]
    pub fn forward(self, event: &Event<'_>) {
        if event.is(self.emit.batch, self.emit.row) {
            self.emit.publish(self.output, Cell::Inherit, Cell::Inherit, Cell::Inherit);
        } else {
            self.event_from(event).value_of(event);
        }
    }

    /// A new event, without key and headers.
    #[inline]
    pub fn event(self) -> Draft<'e, 'b> {
        Draft { emit: self.emit, output: self.output, key: Cell::Null, headers: Cell::Null }
    }

    /// A new event with key and headers of `event`. Nothing of these is copied.
    #[inline]
    pub fn event_from(self, event: &Event<'_>) -> Draft<'e, 'b> {
        self.event().key_of(event).headers_of(event)
    }
}

/// An event that is being written. It is published by what gives it its value: [`json`](Draft::json),
/// [`value`](Draft::value), [`value_of`](Draft::value_of), [`value_with`](Draft::value_with) or
/// [`tombstone`](Draft::tombstone).
///
/// ```
/// use fluxmill_function::testing::{Input, Runner};
/// use fluxmill_function::{Emit, Error, Event};
///
/// fn shout(event: Event, out: &mut Emit) -> Result<(), Error> {
///     let loud = event.text()?.to_uppercase();
///     out.event_from(&event).set_header("volume", "11").value(loud);
///     Ok(())
/// }
///
/// let run = Runner::new(shout).call([Input::new("hello").key("k").header("volume", "3")]).unwrap();
/// assert_eq!(run.published[0].text(), "HELLO");
/// assert_eq!(run.published[0].headers, [("volume".into(), Some("11".into()))]);
/// ```
#[derive(Debug)]
#[must_use = "an event is published by giving it a value: json, value, value_of, value_with or tombstone"]
pub struct Draft<'e, 'b> {
    emit: &'e mut Emit<'b>,
    output: u8,
    key: Cell,
    headers: Cell,
}

impl Draft<'_, '_> {
    /// Gives the event this key.
    #[inline]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.emit.keys.tail(&self.emit.causes).extend_from_slice(key.as_ref());
        self.key = Cell::Own;
        self
    }

    /// Gives the event the key of another, or none if that has none.
    #[inline]
    pub fn key_of(mut self, event: &Event<'_>) -> Self {
        if event.is(self.emit.batch, self.emit.row) {
            self.key = Cell::Inherit;
            return self;
        }
        match event.key() {
            Some(key) => self.key(key),
            None => self.no_key(),
        }
    }

    /// Leaves the event without a key, as it was at first.
    pub fn no_key(mut self) -> Self {
        self.key = Cell::Null;
        self
    }

    /// Gives the event the headers of another, in place of any it has.
    #[inline]
    pub fn headers_of(mut self, event: &Event<'_>) -> Self {
        if event.is(self.emit.batch, self.emit.row) {
            self.headers = Cell::Inherit;
        } else {
            self.emit.headers.set_tail(event.headers(), None, &self.emit.causes);
            self.headers = Cell::Own;
        }
        self
    }

    /// Adds a header after those the event has, even if one has the same name.
    pub fn header(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.add_header(name.as_ref(), Some(value.as_ref()))
    }

    /// Adds a header whose value is null.
    pub fn null_header(self, name: impl AsRef<[u8]>) -> Self {
        self.add_header(name.as_ref(), None)
    }

    /// Puts one header in place of all that have its name. It comes last.
    pub fn set_header(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.remove_header(name.as_ref()).add_header(name.as_ref(), Some(value.as_ref()))
    }

    /// Removes all headers with this name.
    pub fn remove_header(mut self, name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        match self.headers {
            Cell::Null => {}
            Cell::Own => self.emit.headers.remove(name),
            Cell::Inherit => {
                let headers = self.emit.batch.event(self.emit.row).headers();
                if headers.clone().any(|(other, _)| other == name) {
                    self.emit.headers.set_tail(headers, Some(name), &self.emit.causes);
                    self.headers = Cell::Own;
                }
            }
        }
        self
    }

    fn add_header(mut self, name: &[u8], value: Option<&[u8]>) -> Self {
        match self.headers {
            Cell::Own => {}
            Cell::Null => self.emit.headers.clear_tail(&self.emit.causes),
            Cell::Inherit => {
                let headers = self.emit.batch.event(self.emit.row).headers();
                self.emit.headers.set_tail(headers, None, &self.emit.causes);
            }
        }
        self.headers = Cell::Own;
        self.emit.headers.add(name, value);
        self
    }

    /// Publishes the event with this value.
    #[inline]
    pub fn value(self, value: impl AsRef<[u8]>) {
        self.emit.values.tail(&self.emit.causes).extend_from_slice(value.as_ref());
        self.publish(Cell::Own);
    }

    /// Publishes the event with the value of another; a tombstone if that is one.
    pub fn value_of(self, event: &Event<'_>) {
        if event.is(self.emit.batch, self.emit.row) {
            return self.publish(Cell::Inherit);
        }
        match event.value() {
            Some(value) => self.value(value),
            None => self.tombstone(),
        }
    }

    /// Publishes the event with this value as JSON, written straight into the column.
    ///
    /// # Errors
    /// Reject: the value has no JSON form, as a map whose keys are no strings. Nothing is published.
    #[inline]
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        serde_json::to_writer(self.emit.values.tail(&self.emit.causes), value)?;
        self.publish(Cell::Own);
        Ok(())
    }

    /// Publishes the event with what `write` writes, straight into the column: for other encodings.
    ///
    /// # Errors
    /// Those of `write`, as a reject unless they say otherwise. Nothing is published.
    ///
    /// ```
    /// # use fluxmill_function::{Emit, Error, Event};
    /// use std::io::Write;
    ///
    /// fn length(event: Event, out: &mut Emit) -> Result<(), Error> {
    ///     out.event_from(&event).value_with(|value| write!(value, "{}", event.text()?.len()).map_err(Error::from))
    /// }
    /// # fluxmill_function::function!(length);
    /// ```
    pub fn value_with<E: Into<Error>>(
        self,
        write: impl FnOnce(&mut ValueWriter<'_>) -> Result<(), E>,
    ) -> Result<(), Error> {
        write(&mut ValueWriter { bytes: self.emit.values.tail(&self.emit.causes) }).map_err(Into::into)?;
        self.publish(Cell::Own);
        Ok(())
    }

    /// Publishes the event without a value: it says that its key was deleted.
    pub fn tombstone(self) {
        self.publish(Cell::Null);
    }

    #[inline]
    fn publish(self, value: Cell) {
        self.emit.publish(self.output, self.key, self.headers, value);
    }
}

/// Writes an event's value; from [`Draft::value_with`]. It can only append, so it never fails.
#[derive(Debug)]
pub struct ValueWriter<'v> {
    bytes: &'v mut Vec<u8>,
}

impl ValueWriter<'_> {
    /// Makes room for so many more bytes at once.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }
}

impl io::Write for ValueWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
