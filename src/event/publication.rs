//! The published events of one call that go to one output: a view over input and outcome, nothing copied.

use std::sync::Arc;

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

    fn published(&self, at: usize) -> usize {
        match &self.rows {
            Rows::All => at,
            Rows::Some(rows) => rows[at] as usize,
        }
    }
}
