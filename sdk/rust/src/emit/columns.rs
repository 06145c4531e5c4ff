//! Columns of published events that copy nothing until an event differs from the one that caused it.
//!
//! While every published event has its cause's bytes, a column is a flag. The first event with bytes of its own
//! makes it real: the rows before it are copied from the input, and later ones are written as they come. Bytes after
//! the last row (the *tail*) belong to an event that is still being written; they count for nothing until it is.

use crate::{BinaryColumn, BinarySource, HeaderColumn, HeaderSource, Headers};

/// Where one cell of a published event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// The input row that caused the event.
    Inherit,
    /// The tail.
    Own,
    /// Nowhere: no key, a tombstone, no headers.
    Null,
}

/// No published event has a cell of its own.
const NONE: usize = usize::MAX;

/// The keys or the values of the published events.
#[derive(Debug)]
pub(super) struct Bytes<'b> {
    input: &'b BinaryColumn,
    column: BinaryColumn,
    real: bool,
    first_own: usize,
}

impl<'b> Bytes<'b> {
    pub(super) fn new(input: &'b BinaryColumn) -> Self {
        Self { input, column: BinaryColumn::new(), real: false, first_own: NONE }
    }

    /// An empty tail to write into.
    #[inline]
    pub(super) fn tail(&mut self, causes: &[u32]) -> &mut Vec<u8> {
        if !self.real {
            self.make_real(causes);
        }
        self.column.drop_tail();
        &mut self.column.data
    }

    #[cold]
    fn make_real(&mut self, causes: &[u32]) {
        self.real = true;
        self.column.reserve(self.input.len(), self.input.data.len());
        for &row in causes {
            self.column.push(self.input.get(row as usize));
        }
    }

    /// Ends a row: the cell of the published event that comes after `causes`, caused by `row`.
    #[inline]
    pub(super) fn push(&mut self, cell: Cell, causes: &[u32], row: usize) {
        match cell {
            Cell::Inherit if !self.real => {}
            Cell::Inherit => {
                self.column.drop_tail();
                self.column.push(self.input.get(row));
            }
            Cell::Own => {
                self.first_own = self.first_own.min(causes.len());
                self.column.end_row(true);
            }
            Cell::Null if self.input.is_null(row) => self.push(Cell::Inherit, causes, row),
            Cell::Null => {
                self.tail(causes);
                self.first_own = self.first_own.min(causes.len());
                self.column.end_row(false);
            }
        }
    }

    /// Forgets all published events but the first `published`.
    pub(super) fn truncate(&mut self, published: usize) {
        if self.first_own >= published {
            self.first_own = NONE;
            self.real = false;
            self.column.truncate(0);
        } else {
            self.column.truncate(published);
        }
    }

    pub(super) fn finish(mut self) -> BinarySource {
        self.column.drop_tail();
        match self.first_own {
            NONE => BinarySource::Inherit,
            _ => BinarySource::Replace(self.column),
        }
    }
}

/// The headers of the published events.
#[derive(Debug)]
pub(super) struct HeaderRows<'b> {
    input: &'b HeaderColumn,
    column: HeaderColumn,
    real: bool,
    first_own: usize,
}

impl<'b> HeaderRows<'b> {
    pub(super) fn new(input: &'b HeaderColumn) -> Self {
        Self { input, column: HeaderColumn::new(), real: false, first_own: NONE }
    }

    /// Makes the tail these headers, without those named `except`.
    pub(super) fn set_tail(&mut self, headers: Headers<'_>, except: Option<&[u8]>, causes: &[u32]) {
        if !self.real {
            self.make_real(causes);
        }
        self.column.drop_tail();
        for (name, value) in headers.filter(|&(name, _)| Some(name) != except) {
            self.column.push(name, value);
        }
    }

    /// Makes the tail no headers.
    pub(super) fn clear_tail(&mut self, causes: &[u32]) {
        let none = HeaderColumn::none();
        self.set_tail(none.row(0), None, causes);
    }

    /// Adds a header to the tail. The tail was set before.
    pub(super) fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.column.push(name, value);
    }

    /// Removes the headers with this name from the tail. The tail was set before.
    pub(super) fn remove(&mut self, name: &[u8]) {
        let settled = self.column.settled();
        let tail = settled..self.column.names.len();
        if !tail.clone().any(|entry| self.column.names.get(entry) == Some(name)) {
            return;
        }
        let mut kept = HeaderColumn::new();
        for (name, value) in (Headers { column: &self.column, range: tail }).filter(|&(other, _)| other != name) {
            kept.push(name, value);
        }
        kept.end_row();
        self.column.drop_tail();
        for (name, value) in kept.row(0) {
            self.column.push(name, value);
        }
    }

    fn make_real(&mut self, causes: &[u32]) {
        self.real = true;
        for &row in causes {
            self.copy_row(row as usize);
        }
    }

    fn copy_row(&mut self, row: usize) {
        for (name, value) in self.input.row(row) {
            self.column.push(name, value);
        }
        self.column.end_row();
    }

    /// Ends a row: the headers of the published event that comes after `causes`, caused by `row`.
    #[inline]
    pub(super) fn push(&mut self, cell: Cell, causes: &[u32], row: usize) {
        match cell {
            Cell::Inherit if !self.real => {}
            Cell::Inherit => {
                self.column.drop_tail();
                self.copy_row(row);
            }
            Cell::Null if self.input.row(row).len() == 0 => self.push(Cell::Inherit, causes, row),
            Cell::Null => {
                self.clear_tail(causes);
                self.push(Cell::Own, causes, row);
            }
            Cell::Own => {
                self.first_own = self.first_own.min(causes.len());
                self.column.end_row();
            }
        }
    }

    /// Forgets all published events but the first `published`.
    pub(super) fn truncate(&mut self, published: usize) {
        if self.first_own >= published {
            self.first_own = NONE;
            self.real = false;
            self.column.truncate(0);
        } else {
            self.column.truncate(published);
        }
    }

    pub(super) fn finish(mut self) -> HeaderSource {
        self.column.drop_tail();
        match self.first_own {
            NONE => HeaderSource::Inherit,
            _ if self.column.names.is_empty() => HeaderSource::Replace(HeaderColumn::none()),
            _ => HeaderSource::Replace(self.column),
        }
    }
}
