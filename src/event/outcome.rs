//! What a function made of a batch.

use arrow_array::{Array, BinaryArray};

use super::{EventBatch, HeaderColumn};

/// Where the keys or values of published events come from.
#[derive(Clone, Debug)]
pub enum ColumnSource {
    /// Each published event has the bytes of the input row that caused it.
    Inherit,
    /// One row for each published event.
    Replace(BinaryArray),
}

/// Where the headers of published events come from.
#[expect(clippy::large_enum_variant, reason = "there is one a batch, and it is never moved in bulk")]
#[derive(Clone, Debug)]
pub enum HeaderSource {
    /// Each published event has the headers of the input row that caused it.
    Inherit,
    /// One row for each published event.
    Replace(HeaderColumn),
}

/// Whether a failed event may pass when it is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// May pass: run this event again, with backoff.
    Retry,
    /// Will never pass.
    Reject,
}

/// One input row that a function could not process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The input row.
    pub row: u32,
    /// What to do with it.
    pub kind: FailureKind,
    /// The function's own words.
    pub reason: String,
}

/// What became of a batch. An input row that is neither in `causes` nor in `failures` was dropped on purpose.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `causes[i]` is the input row that caused published event i; one row may cause several.
    pub causes: Vec<u32>,
    /// `outputs[i]` indexes the pipeline's outputs; empty sends all to the first.
    pub outputs: Vec<u8>,
    /// Keys of the published events.
    pub keys: ColumnSource,
    /// Values of the published events.
    pub values: ColumnSource,
    /// Headers of the published events.
    pub headers: HeaderSource,
    /// The rows that failed.
    pub failures: Vec<Failure>,
}

/// Why an outcome cannot be true. The function is at fault; the batch counts as failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the function returned {0}")]
pub struct OutcomeError(pub String);

impl Outcome {
    /// An outcome that publishes every one of `rows` input rows unchanged to the first output.
    pub fn pass_through(rows: usize) -> Self {
        let rows = u32::try_from(rows).expect("a batch has fewer than 2^32 rows");
        Self {
            causes: (0..rows).collect(),
            outputs: Vec::new(),
            keys: ColumnSource::Inherit,
            values: ColumnSource::Inherit,
            headers: HeaderSource::Inherit,
            failures: Vec::new(),
        }
    }

    /// Bytes of memory that the outcome holds, beside what it inherits, about.
    pub fn memory(&self) -> usize {
        let column = |column: &ColumnSource| match column {
            ColumnSource::Inherit => 0,
            ColumnSource::Replace(column) => column.get_buffer_memory_size(),
        };
        let headers = match &self.headers {
            HeaderSource::Inherit => 0,
            HeaderSource::Replace(headers) => headers.memory(),
        };
        column(&self.keys) + column(&self.values) + headers + size_of::<u32>() * self.len()
    }

    /// The number of published events.
    pub fn len(&self) -> usize {
        self.causes.len()
    }

    /// Whether nothing is published.
    pub fn is_empty(&self) -> bool {
        self.causes.is_empty()
    }

    /// The output that published event i goes to.
    pub fn output(&self, published: usize) -> usize {
        self.outputs.get(published).map_or(0, |&output| output as usize)
    }

    /// Checks row numbers, lengths, output indices and that no row was both published and failed, or failed twice.
    ///
    /// # Errors
    /// The first thing that cannot be true, in words.
    pub fn check(&self, input_rows: usize, outputs: usize) -> Result<(), OutcomeError> {
        let published = self.causes.len();
        let lie = |text: String| Err(OutcomeError(text));
        if let Some((at, &row)) = self.causes.iter().enumerate().find(|&(_, &row)| row as usize >= input_rows) {
            return lie(format!("causes[{at}] = {row}, but the batch has {input_rows} rows"));
        }
        if !self.outputs.is_empty() && self.outputs.len() != published {
            return lie(format!("{} outputs for {published} published events", self.outputs.len()));
        }
        if let Some((at, &output)) = self.outputs.iter().enumerate().find(|&(_, &output)| output as usize >= outputs) {
            return lie(format!("outputs[{at}] = {output}, but the pipeline has {outputs} outputs"));
        }
        for (name, column) in [("keys", &self.keys), ("values", &self.values)] {
            if let ColumnSource::Replace(column) = column
                && column.len() != published
            {
                return lie(format!("{} {name} for {published} published events", column.len()));
            }
        }
        if let HeaderSource::Replace(HeaderColumn { rows: Some(rows), .. }) = &self.headers
            && rows.len() != published + 1
        {
            return lie(format!("{} header row offsets for {published} published events", rows.len()));
        }
        self.check_failures(input_rows)
    }

    /// Bytes that the published events take over from their causes: a row that causes several counts each time. The
    /// outcome must have been checked.
    pub fn inherited_bytes(&self, input: &EventBatch) -> usize {
        let of_row = |row: usize| {
            let mut bytes = 0;
            if matches!(self.keys, ColumnSource::Inherit) {
                bytes += input.keys.value_length(row) as usize;
            }
            if matches!(self.values, ColumnSource::Inherit) {
                bytes += input.values.value_length(row) as usize;
            }
            if matches!(self.headers, HeaderSource::Inherit) {
                bytes += input
                    .headers
                    .row(row)
                    .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len))
                    .sum::<usize>();
            }
            bytes
        };
        self.causes.iter().map(|&row| of_row(row as usize)).sum()
    }

    fn check_failures(&self, input_rows: usize) -> Result<(), OutcomeError> {
        if self.failures.is_empty() {
            return Ok(());
        }
        let mut failed = vec![false; input_rows];
        for (at, failure) in self.failures.iter().enumerate() {
            let row = failure.row as usize;
            if row >= input_rows {
                return Err(OutcomeError(format!("failures[{at}].row = {row}, but the batch has {input_rows} rows")));
            }
            if std::mem::replace(&mut failed[row], true) {
                return Err(OutcomeError(format!("row {row} twice in failures")));
            }
        }
        match self.causes.iter().find(|&&row| failed[row as usize]) {
            Some(row) => Err(OutcomeError(format!("row {row} both in causes and in failures"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lie(change: impl FnOnce(&mut Outcome)) -> String {
        let mut outcome = Outcome::pass_through(3);
        outcome.check(3, 2).unwrap();
        change(&mut outcome);
        outcome.check(3, 2).unwrap_err().0
    }

    fn column(rows: usize) -> ColumnSource {
        ColumnSource::Replace(BinaryArray::from_iter_values(vec![b"x"; rows]))
    }

    #[test]
    fn lies_are_named() {
        let failure = |row| Failure { row, kind: FailureKind::Reject, reason: String::new() };
        assert_eq!(lie(|o| o.causes[1] = 3), "causes[1] = 3, but the batch has 3 rows");
        assert_eq!(lie(|o| o.outputs = vec![0, 1]), "2 outputs for 3 published events");
        assert_eq!(lie(|o| o.outputs = vec![0, 1, 2]), "outputs[2] = 2, but the pipeline has 2 outputs");
        assert_eq!(lie(|o| o.keys = column(2)), "2 keys for 3 published events");
        assert_eq!(lie(|o| o.values = column(4)), "4 values for 3 published events");
        assert_eq!(lie(|o| o.failures = vec![failure(9)]), "failures[0].row = 9, but the batch has 3 rows");
        assert_eq!(lie(|o| o.failures = vec![failure(1)]), "row 1 both in causes and in failures");
        let twice = |o: &mut Outcome| {
            o.causes.clear();
            o.failures = vec![failure(1), failure(1)];
        };
        assert_eq!(lie(twice), "row 1 twice in failures");
    }

    #[test]
    fn headers_for_too_few_events_are_a_lie() {
        let mut headers = crate::event::HeaderBuilder::default();
        headers.append([(&b"a"[..], None)].into_iter());
        let headers = HeaderSource::Replace(headers.finish());
        assert_eq!(lie(|o| o.headers = headers), "2 header row offsets for 3 published events");
    }

    #[test]
    fn a_row_that_causes_several_events_is_counted_each_time() {
        let mut builder = crate::event::BatchBuilder::default();
        let origin = crate::event::Origin { slot: crate::delivery::Slot(0), offset: 0 };
        builder.append(origin, Some(b"k"), Some(b"value"), 0, [(&b"h"[..], Some(&b"v"[..]))].into_iter());
        let input = builder.finish();
        let mut outcome = Outcome { causes: vec![0; 3], ..Outcome::pass_through(1) };
        assert_eq!(outcome.inherited_bytes(&input), 3 * (1 + 5 + 2));
        outcome.values = column(3);
        assert_eq!(outcome.inherited_bytes(&input), 3 * (1 + 2));
    }
}
