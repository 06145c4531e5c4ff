//! The contract of wit/function.wit as Rust types: columns go in as one copy each, and what comes back is believed
//! only after it was checked.
//!
//! Hand-written instead of generated: generated bindings take owned vectors, these borrow the Arrow buffers.

use std::borrow::Cow;
use std::ops::Range;

use arrow_array::{Array, BinaryArray};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use wasmtime::component::{ComponentType, Lift, Lower};

use crate::event::{ColumnSource, EventBatch, Failure, FailureKind, HeaderColumn, HeaderSource, Outcome, OutcomeError};

/// `binary-column`, going in.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct ColumnIn<'a> {
    offsets: &'a [u32],
    data: &'a [u8],
    validity: &'a [u8],
}

/// `header-column`, going in.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct HeadersIn<'a> {
    rows: &'a [u32],
    names: ColumnIn<'a>,
    values: ColumnIn<'a>,
}

/// `event-batch`, going in.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(super) struct BatchIn<'a> {
    keys: ColumnIn<'a>,
    values: ColumnIn<'a>,
    headers: HeadersIn<'a>,
    timestamps: &'a [i64],
}

/// `binary-column`, coming out.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct ColumnOut {
    offsets: Vec<u32>,
    data: Vec<u8>,
    validity: Vec<u8>,
}

/// `header-column`, coming out.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct HeadersOut {
    rows: Vec<u32>,
    names: ColumnOut,
    values: ColumnOut,
}

/// `binary-source`.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum BinarySourceOut {
    #[component(name = "inherit")]
    Inherit,
    #[component(name = "replace")]
    Replace(ColumnOut),
}

/// `header-source`.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum HeaderSourceOut {
    #[component(name = "inherit")]
    Inherit,
    #[component(name = "replace")]
    Replace(HeadersOut),
}

/// `failure-kind`.
#[expect(dead_code, reason = "lifted by its number, never by name")]
#[derive(ComponentType, Lift, Clone, Copy)]
#[component(enum)]
#[repr(u8)]
pub(super) enum FailureKindOut {
    #[component(name = "retry")]
    Retry,
    #[component(name = "reject")]
    Reject,
}

/// `failure`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct FailureOut {
    row: u32,
    kind: FailureKindOut,
    reason: String,
}

/// `outcome`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(super) struct OutcomeOut {
    causes: Vec<u32>,
    outputs: Vec<u8>,
    keys: BinarySourceOut,
    values: BinarySourceOut,
    headers: HeaderSourceOut,
    failures: Vec<FailureOut>,
}

/// `batch-error`.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(super) enum BatchErrorOut {
    #[component(name = "retry")]
    Retry(String),
    #[component(name = "reject")]
    Reject(String),
}

/// The parameters of `transform`.
pub(super) type Params<'a> = (BatchIn<'a>,);
/// The results of `transform`.
pub(super) type Results = (Result<OutcomeOut, BatchErrorOut>,);

/// A column on its way in: borrowed from Arrow's buffers, except where a slice must be moved to start at zero.
struct ColumnParts<'a> {
    offsets: Cow<'a, [u32]>,
    data: &'a [u8],
    validity: Cow<'a, [u8]>,
}

/// A batch on its way in; [`BatchParts::lower`] borrows it for the call.
pub(super) struct BatchParts<'a> {
    keys: ColumnParts<'a>,
    values: ColumnParts<'a>,
    header_rows: Cow<'a, [u32]>,
    header_names: ColumnParts<'a>,
    header_values: ColumnParts<'a>,
    timestamps: &'a [i64],
}

impl<'a> ColumnParts<'a> {
    /// The chosen rows of a column. A slice shows only its own bytes to the function, and its offsets start at zero.
    fn new(column: &'a BinaryArray, rows: Range<usize>) -> Self {
        let offsets = &as_u32(column.offsets())[rows.start..=rows.end];
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        let validity = match column.nulls() {
            Some(nulls) if column.null_count() > 0 => bitmap(nulls, rows),
            _ => Cow::Borrowed(&[][..]),
        };
        Self { offsets: from_zero(offsets), data: &column.value_data()[first as usize..last as usize], validity }
    }

    fn all(column: &'a BinaryArray) -> Self {
        Self::new(column, 0..column.len())
    }

    fn lower(&self) -> ColumnIn<'_> {
        ColumnIn { offsets: &self.offsets, data: self.data, validity: &self.validity }
    }
}

impl<'a> BatchParts<'a> {
    /// Looks at a batch as the contract's columns.
    pub(super) fn new(batch: &'a EventBatch) -> Self {
        let headers = &batch.headers;
        let rows: &[u32] = headers.rows.as_ref().map_or(&[], as_u32);
        let entries = match rows {
            [] => 0..0,
            [first, .., last] => *first as usize..*last as usize,
            [first] => *first as usize..*first as usize,
        };
        Self {
            keys: ColumnParts::all(&batch.keys),
            values: ColumnParts::all(&batch.values),
            header_rows: from_zero(rows),
            header_names: ColumnParts::new(&headers.names, entries.clone()),
            header_values: ColumnParts::new(&headers.values, entries),
            timestamps: &batch.timestamps,
        }
    }

    /// The parameters of `transform`.
    pub(super) fn lower(&self) -> Params<'_> {
        let headers =
            HeadersIn { rows: &self.header_rows, names: self.header_names.lower(), values: self.header_values.lower() };
        (BatchIn { keys: self.keys.lower(), values: self.values.lower(), headers, timestamps: self.timestamps },)
    }
}

/// Arrow's offsets are never negative, so their bits are the same as unsigned numbers.
fn as_u32(offsets: &OffsetBuffer<i32>) -> &[u32] {
    offsets.inner().inner().typed_data::<u32>()
}

fn from_zero(offsets: &[u32]) -> Cow<'_, [u32]> {
    match offsets.first() {
        None | Some(0) => Cow::Borrowed(offsets),
        Some(first) => offsets.iter().map(|offset| offset - first).collect(),
    }
}

/// The bitmap of the chosen rows: bits that do not start on a byte are moved.
fn bitmap(nulls: &NullBuffer, rows: Range<usize>) -> Cow<'_, [u8]> {
    let (offset, bytes) = (nulls.offset() + rows.start, rows.len().div_ceil(8));
    if offset.is_multiple_of(8) {
        Cow::Borrowed(&nulls.validity()[offset / 8..offset / 8 + bytes])
    } else {
        Cow::Owned(nulls.inner().slice(rows.start, rows.len()).sliced().as_slice()[..bytes].to_vec())
    }
}

impl OutcomeOut {
    /// Checks everything, and hands the vectors over to Arrow without a copy.
    ///
    /// # Errors
    /// The first thing that cannot be true.
    pub(super) fn into_outcome(self, input_rows: usize, outputs: usize) -> Result<Outcome, OutcomeError> {
        let outcome = Outcome {
            causes: self.causes,
            outputs: self.outputs,
            keys: self.keys.into_source("keys")?,
            values: self.values.into_source("values")?,
            headers: match self.headers {
                HeaderSourceOut::Inherit => HeaderSource::Inherit,
                HeaderSourceOut::Replace(headers) => HeaderSource::Replace(headers.into_headers()?),
            },
            failures: self.failures.into_iter().map(FailureOut::into_failure).collect(),
        };
        outcome.check(input_rows, outputs)?;
        Ok(outcome)
    }
}

impl FailureOut {
    fn into_failure(self) -> Failure {
        let kind = match self.kind {
            FailureKindOut::Retry => FailureKind::Retry,
            FailureKindOut::Reject => FailureKind::Reject,
        };
        Failure { row: self.row, kind, reason: self.reason }
    }
}

impl BinarySourceOut {
    fn into_source(self, name: &str) -> Result<ColumnSource, OutcomeError> {
        Ok(match self {
            Self::Inherit => ColumnSource::Inherit,
            Self::Replace(column) => ColumnSource::Replace(column.into_array(name)?),
        })
    }
}

impl HeadersOut {
    fn into_headers(self) -> Result<HeaderColumn, OutcomeError> {
        let names = self.names.into_array("headers.names")?;
        let values = self.values.into_array("headers.values")?;
        if names.len() != values.len() {
            return lie(format!("{} header names, but {} header values", names.len(), values.len()));
        }
        if names.null_count() > 0 {
            return lie("a header name that is null".to_owned());
        }
        let rows = if self.rows.is_empty() {
            if !names.is_empty() {
                return lie(format!("{} headers, but headers.rows is empty", names.len()));
            }
            None
        } else {
            Some(offsets(self.rows, names.len(), "headers.rows")?)
        };
        Ok(HeaderColumn { rows, names, values })
    }
}

impl ColumnOut {
    /// An empty list of offsets counts as a column without rows.
    fn into_array(mut self, name: &str) -> Result<BinaryArray, OutcomeError> {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        let rows = self.offsets.len() - 1;
        let offsets = offsets(self.offsets, self.data.len(), &format!("{name}.offsets"))?;
        let nulls = if self.validity.is_empty() {
            None
        } else if self.validity.len() < rows.div_ceil(8) {
            return lie(format!("{name}.validity of {} bytes for {rows} rows", self.validity.len()));
        } else {
            Some(NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(self.validity), 0, rows)))
        };
        BinaryArray::try_new(offsets, Buffer::from_vec(self.data), nulls)
            .map_err(|error| OutcomeError(format!("{name} that are no column: {error}")))
    }
}

/// Offsets as Arrow has them: not decreasing, and none beyond `end`.
fn offsets(offsets: Vec<u32>, end: usize, name: &str) -> Result<OffsetBuffer<i32>, OutcomeError> {
    if let Some(at) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        return lie(format!("{name}[{}] = {}, less than {} before it", at + 1, offsets[at + 1], offsets[at]));
    }
    let last = offsets.last().copied().unwrap_or(0);
    if last as usize > end {
        return lie(format!("{name} that end at {last}, but there are {end}"));
    }
    if i32::try_from(last).is_err() {
        return lie(format!("{name} that end at {last}; a column holds at most {} bytes", i32::MAX));
    }
    // Checked above: all are between 0 and i32::MAX, so the same bits are the same numbers.
    Ok(OffsetBuffer::new(ScalarBuffer::<i32>::from(Buffer::from_vec(offsets))))
}

fn lie<T>(text: String) -> Result<T, OutcomeError> {
    Err(OutcomeError(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(offsets: &[u32], data: &[u8], validity: &[u8]) -> ColumnOut {
        ColumnOut { offsets: offsets.to_vec(), data: data.to_vec(), validity: validity.to_vec() }
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, OutcomeError>) -> String {
        result.unwrap_err().0
    }

    #[test]
    fn a_column_that_cannot_be_is_refused() {
        let array = |c: ColumnOut| c.into_array("values");
        assert_eq!(reason(array(column(&[0, 3, 2], b"abc", &[]))), "values.offsets[2] = 2, less than 3 before it");
        assert_eq!(reason(array(column(&[0, 4], b"abc", &[]))), "values.offsets that end at 4, but there are 3");
        assert_eq!(reason(array(column(&[u32::MAX], b"abc", &[]))).split(',').count(), 2);
        assert_eq!(reason(array(column(&[0; 10], b"", &[255]))), "values.validity of 1 bytes for 9 rows");
        assert_eq!(array(column(&[], b"abc", &[])).unwrap().len(), 0);
        assert_eq!(array(column(&[1, 2, 2], b"abc", &[1])).unwrap(), BinaryArray::from(vec![Some(&b"b"[..]), None]));
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let headers = |rows: &[u32], names, values| HeadersOut { rows: rows.to_vec(), names, values }.into_headers();
        let two = || column(&[0, 1, 2], b"ab", &[]);
        assert_eq!(reason(headers(&[], two(), two())), "2 headers, but headers.rows is empty");
        assert_eq!(reason(headers(&[0, 3], two(), two())), "headers.rows that end at 3, but there are 2");
        assert_eq!(reason(headers(&[0, 2, 1], two(), two())), "headers.rows[2] = 1, less than 2 before it");
        assert_eq!(reason(headers(&[0, 2], two(), column(&[0, 1], b"a", &[]))), "2 header names, but 1 header values");
        assert_eq!(reason(headers(&[0, 2], column(&[0, 1, 2], b"ab", &[1]), two())), "a header name that is null");
        assert!(headers(&[], column(&[], b"", &[]), column(&[], b"", &[])).unwrap().rows.is_none());
    }

    #[test]
    fn a_slice_goes_in_as_if_it_had_been_alone() {
        let all: BinaryArray = (0..20).map(|i| (i % 3 != 0).then(|| vec![b'a' + i as u8; i % 4])).collect();
        for from in 0..20 {
            for rows in 0..=20 - from {
                let slice = all.slice(from, rows);
                let parts = ColumnParts::all(&slice);
                let back = column(&parts.offsets, parts.data, &parts.validity).into_array("keys").unwrap();
                assert_eq!(back, slice, "{from} {rows}");
                assert_eq!(parts.offsets[0], 0);
                assert_eq!(*parts.offsets.last().unwrap() as usize, parts.data.len());
            }
        }
    }
}
