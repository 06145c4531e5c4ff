//! Reading and writing the columns of the contract. Arrow's layout without Arrow: three vectors each.

use crate::{BinaryColumn, HeaderColumn, Headers};

impl BinaryColumn {
    /// A column without rows.
    pub fn new() -> Self {
        Self::with_capacity(0, 0)
    }

    /// A column without rows, with room for `rows` rows of `bytes` bytes in all.
    pub fn with_capacity(rows: usize, bytes: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, data: Vec::with_capacity(bytes), validity: Vec::new() }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether the column has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the row is null, which is different from empty.
    ///
    /// # Panics
    /// When `row` is out of range and the column has nulls.
    #[inline]
    pub fn is_null(&self, row: usize) -> bool {
        !self.validity.is_empty() && self.validity[row >> 3] & (1 << (row & 7)) == 0
    }

    /// The bytes of a row; `None` where it is null.
    ///
    /// # Panics
    /// When `row` is out of range.
    #[inline]
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        if self.is_null(row) {
            return None;
        }
        let ends = &self.offsets[row..row + 2];
        Some(&self.data[ends[0] as usize..ends[1] as usize])
    }

    /// Appends a row.
    ///
    /// # Panics
    /// When the column would hold 4 GiB or more.
    #[inline]
    pub fn push(&mut self, row: Option<&[u8]>) {
        if let Some(bytes) = row {
            self.data.extend_from_slice(bytes);
        }
        self.end_row(row.is_some());
    }

    /// Cuts the column down to its first `rows` rows, and drops bytes that belong to no row.
    pub fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.drop_tail();
        self.validity.truncate(rows.div_ceil(8));
    }

    /// Makes everything in `data` after the last row one more row.
    #[inline]
    pub(crate) fn end_row(&mut self, present: bool) {
        let row = self.len();
        self.offsets.push(u32::try_from(self.data.len()).expect("a column holds less than 4 GiB"));
        if !present && self.validity.is_empty() {
            self.validity.resize(row / 8 + 1, 0xff);
        }
        if !self.validity.is_empty() {
            self.mark(row, present);
        }
    }

    fn mark(&mut self, row: usize, present: bool) {
        if row / 8 == self.validity.len() {
            self.validity.push(0);
        }
        let bit = 1 << (row & 7);
        match present {
            true => self.validity[row / 8] |= bit,
            false => self.validity[row / 8] &= !bit,
        }
    }

    /// Drops the bytes after the last row.
    #[inline]
    pub(crate) fn drop_tail(&mut self) {
        let end = self.offsets.last().map_or(0, |&end| end as usize);
        self.data.truncate(end);
    }

    pub(crate) fn reserve(&mut self, rows: usize, bytes: usize) {
        self.offsets.reserve(rows);
        self.data.reserve(bytes);
    }
}

impl Default for BinaryColumn {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: AsRef<[u8]>> FromIterator<Option<T>> for BinaryColumn {
    fn from_iter<I: IntoIterator<Item = Option<T>>>(rows: I) -> Self {
        let rows = rows.into_iter();
        let mut column = Self::with_capacity(rows.size_hint().0, 0);
        for row in rows {
            column.push(row.as_ref().map(AsRef::as_ref));
        }
        column
    }
}

impl HeaderColumn {
    /// Headers of events that have none.
    pub fn none() -> Self {
        Self { rows: Vec::new(), names: BinaryColumn::new(), values: BinaryColumn::new() }
    }

    /// A column without rows, to be filled by [`push`](Self::push) and [`end_row`](Self::end_row).
    pub fn new() -> Self {
        Self { rows: vec![0], ..Self::none() }
    }

    /// The headers of one row, in order.
    ///
    /// # Panics
    /// When `row` is out of range and any row has headers.
    #[inline]
    pub fn row(&self, row: usize) -> Headers<'_> {
        let range = match self.rows.is_empty() {
            true => 0..0,
            false => self.rows[row] as usize..self.rows[row + 1] as usize,
        };
        Headers { column: self, range }
    }

    /// Adds a header to the row that [`end_row`](Self::end_row) will end.
    ///
    /// # Panics
    /// When the names or the values would hold 4 GiB or more.
    pub fn push(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.names.push(Some(name));
        self.values.push(value);
    }

    /// Ends a row: it owns the headers pushed since the last one.
    ///
    /// # Panics
    /// When the column would hold 2^32 headers or more.
    pub fn end_row(&mut self) {
        self.rows.push(u32::try_from(self.names.len()).expect("a batch has fewer than 2^32 headers"));
    }

    /// Cuts the column down to its first `rows` rows, and drops headers that belong to no row.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.rows.truncate(rows + 1);
        self.drop_tail();
    }

    /// The number of headers that belong to a row.
    pub(crate) fn settled(&self) -> usize {
        self.rows.last().map_or(0, |&end| end as usize)
    }

    /// Drops the headers after the last row.
    pub(crate) fn drop_tail(&mut self) {
        let settled = self.settled();
        self.names.truncate(settled);
        self.values.truncate(settled);
    }
}

impl Default for HeaderColumn {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_keep_their_place_across_byte_borders_and_cuts() {
        let rows: Vec<Option<Vec<u8>>> = (0..20u8).map(|row| (row % 7 != 3).then(|| vec![row; row as usize])).collect();
        let mut column: BinaryColumn = rows.iter().map(|row| row.as_deref()).collect();
        for cut in (0..=20).rev() {
            column.truncate(cut);
            assert_eq!(column.len(), cut);
            let read: Vec<_> = (0..cut).map(|row| column.get(row).map(<[u8]>::to_vec)).collect();
            assert_eq!(read, rows[..cut]);
        }
        column.push(Some(b"again"));
        column.push(None);
        assert_eq!((column.get(0), column.get(1)), (Some(b"again".as_slice()), None));
    }

    #[test]
    fn a_bit_left_by_a_cut_row_is_set_anew() {
        let mut column: BinaryColumn = [Some("a"), None, None].into_iter().collect();
        column.truncate(1);
        column.push(Some(b"b"));
        assert_eq!((column.get(0), column.get(1)), (Some(b"a".as_slice()), Some(b"b".as_slice())));
    }

    #[test]
    fn no_validity_where_nothing_is_null() {
        let column: BinaryColumn = [Some("a"), Some("")].into_iter().collect();
        assert!(column.validity.is_empty());
        assert_eq!(column.get(1), Some(b"".as_slice()));
    }
}
