//! The published events of one call that go to one output: a view over input and outcome, nothing copied.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{Array, BinaryArray};
use arrow_buffer::NullBuffer;

use super::{ColumnSource, EventBatch, EventRef, HeaderSource, Outcome, nullable};

/// Which of an outcome's published events a publication holds, in publish order.
#[derive(Clone, Debug)]
pub enum Rows {
    /// All of them.
    All,
    /// These.
    Some(Vec<u32>),
}

/// The published events that go to one output, in publish order.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The batch that the function received.
    pub input: EventBatch,
    /// What the function returned.
    pub outcome: Arc<Outcome>,
    /// Which published events go here.
    pub rows: Rows,
}

/// A binary column with its parts at hand.
#[derive(Clone, Copy)]
struct Column<'a> {
    offsets: &'a [i32],
    data: &'a [u8],
    nulls: Option<&'a NullBuffer>,
}

impl<'a> Column<'a> {
    fn new(column: &'a BinaryArray) -> Self {
        Self { offsets: column.value_offsets(), data: column.value_data(), nulls: column.nulls() }
    }

    /// The column that a source stands for, and whether it is the inherited one.
    fn of(source: &'a ColumnSource, inherited: &'a BinaryArray) -> (Self, bool) {
        match source {
            ColumnSource::Inherit => (Self::new(inherited), true),
            ColumnSource::Replace(own) => (Self::new(own), false),
        }
    }

    #[inline]
    fn get(&self, row: usize) -> Option<&'a [u8]> {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        Some(&self.data[self.offsets[row] as usize..self.offsets[row + 1] as usize])
    }
}

impl Publication {
    /// A publication of all rows of a batch as they are.
    pub fn unchanged(batch: EventBatch) -> Self {
        let outcome = Arc::new(Outcome::pass_through(batch.len()));
        Self { input: batch, outcome, rows: Rows::All }
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::All => self.outcome.len(),
            Rows::Some(rows) => rows.len(),
        }
    }

    /// Whether there is nothing to publish.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The input row that caused the event at `at`.
    pub fn cause(&self, at: usize) -> u32 {
        self.outcome.causes[self.published(at)]
    }

    /// All events, in publish order, as [`Publication::event`] gives them one by one. Which columns they come from is
    /// decided once, not for each.
    ///
    /// # Panics
    /// While iterating, when the outcome was not checked.
    pub fn events(&self) -> impl ExactSizeIterator<Item = EventRef<'_>> {
        let (input, outcome) = (&self.input, &*self.outcome);
        let (keys, keys_inherited) = Column::of(&outcome.keys, &input.keys);
        let (values, values_inherited) = Column::of(&outcome.values, &input.values);
        let (headers, headers_inherited) = match &outcome.headers {
            HeaderSource::Inherit => (&input.headers, true),
            HeaderSource::Replace(own) => (own, false),
        };
        (0..self.len()).map(move |at| {
            let published = self.published(at);
            let cause = outcome.causes[published] as usize;
            let row = |inherited| if inherited { cause } else { published };
            EventRef {
                key: keys.get(row(keys_inherited)),
                value: values.get(row(values_inherited)),
                headers: headers.row(row(headers_inherited)),
                timestamp: input.timestamps[cause],
            }
        })
    }

    /// The event at `at`, with what it inherits taken from its cause. The timestamp is always the cause's.
    ///
    /// # Panics
    /// When `at` is out of range, or the outcome was not checked.
    pub fn event(&self, at: usize) -> EventRef<'_> {
        let published = self.published(at);
        let cause = self.outcome.causes[published] as usize;
        EventRef {
            key: match &self.outcome.keys {
                ColumnSource::Inherit => nullable(&self.input.keys, cause),
                ColumnSource::Replace(keys) => nullable(keys, published),
            },
            value: match &self.outcome.values {
                ColumnSource::Inherit => nullable(&self.input.values, cause),
                ColumnSource::Replace(values) => nullable(values, published),
            },
            headers: match &self.outcome.headers {
                HeaderSource::Inherit => self.input.headers.row(cause),
                HeaderSource::Replace(headers) => headers.row(published),
            },
            timestamp: self.input.timestamps[cause],
        }
    }

    /// For each published event of the outcome, which of those it is that its cause has in the same output, counted from
    /// 0. Publications of one outcome agree on it, and so does the outcome of the same event when it is run again.
    pub fn numbers(&self) -> Vec<u32> {
        let outcome = &self.outcome;
        let mut counts: HashMap<(u32, u8), u32> = HashMap::new();
        let mut count = |cause: u32, output: u8| {
            let count = counts.entry((cause, output)).or_default();
            *count += 1;
            *count - 1
        };
        let outputs = &outcome.outputs;
        let is_single = outcome.causes.is_sorted_by(|one, other| one < other);
        let number = |(at, &cause): (usize, &u32)| count(cause, outputs.get(at).copied().unwrap_or(0));
        // Most functions make one event of one.
        if is_single { vec![0; outcome.len()] } else { outcome.causes.iter().enumerate().map(number).collect() }
    }

    /// Which published event of the outcome the event at `at` is.
    pub fn published(&self, at: usize) -> usize {
        match &self.rows {
            Rows::All => at,
            Rows::Some(rows) => rows[at] as usize,
        }
    }
}
