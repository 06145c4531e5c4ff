//! Reads Kafka's primitive types from bytes that a broker sent, and believes none of them.

use std::time::Duration;

use bytes::{Buf, Bytes};

/// A response that does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed response at byte {at}: {what}")]
pub(crate) struct Malformed {
    /// The position in the response, behind the correlation id.
    pub(crate) at: usize,
    /// What is wrong there.
    pub(crate) what: &'static str,
}

/// A response that is read from front to back.
///
/// Lengths and counts are checked against the bytes that are left before anything is reserved, so that a response
/// takes memory in proportion to its size. Strings, arrays and byte strings are compact in flexible versions (KIP-482).
#[derive(Debug)]
pub(crate) struct Reader {
    left: Bytes,
    total: usize,
    flexible: bool,
}

macro_rules! fixed {
    ($($name:ident, $try_get:ident, $type:ty;)*) => {
        $(
            /// A number of fixed size.
            ///
            /// # Errors
            /// At the end of the bytes.
            pub(crate) fn $name(&mut self) -> Result<$type, Malformed> {
                self.left.$try_get().map_err(|_| self.malformed("a number is cut short"))
            }
        )*
    };
}

impl Reader {
    /// Reads `bytes`, of a flexible version or not.
    pub(crate) fn new(bytes: Bytes, flexible: bool) -> Self {
        Self { total: bytes.len(), left: bytes, flexible }
    }

    /// An error at this place.
    pub(crate) fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { at: self.total - self.left.len(), what }
    }

    /// Whether everything was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fixed! {
        u8, try_get_u8, u8;
        i16, try_get_i16, i16;
        i32, try_get_i32, i32;
        i64, try_get_i64, i64;
    }

    /// How long the broker throttles this client (KIP-219).
    ///
    /// # Errors
    /// At the end of the bytes.
    pub(crate) fn throttle(&mut self) -> Result<Duration, Malformed> {
        Ok(Duration::from_millis(u64::try_from(self.i32()?).unwrap_or(0)))
    }

    /// A port.
    ///
    /// # Errors
    /// When it is none, or at the end of the bytes.
    pub(crate) fn port(&mut self) -> Result<u16, Malformed> {
        u16::try_from(self.i32()?).map_err(|_| self.malformed("not a port"))
    }

    /// An unsigned number in groups of seven bits, the lowest first, of 32 bits at most.
    ///
    /// # Errors
    /// When it is larger, or at the end of the bytes.
    pub(crate) fn uvarint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            if shift == 28 && byte > 0x0f {
                break;
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number has more than 32 bits"))
    }

    /// The bytes of this length, shared, not copied.
    fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.left.len() {
            return Err(self.malformed("longer than the response"));
        }
        Ok(self.left.split_to(length))
    }

    /// A length in flexible versions; `None` for null.
    fn compact_length(&mut self) -> Result<Option<usize>, Malformed> {
        Ok((self.uvarint()? as usize).checked_sub(1))
    }

    /// A signed length; `None` for null.
    fn signed_length(&self, length: i32) -> Result<Option<usize>, Malformed> {
        if length == -1 {
            return Ok(None);
        }
        usize::try_from(length).map(Some).map_err(|_| self.malformed("a negative length"))
    }

    /// A string that may be null.
    ///
    /// # Errors
    /// When it is longer than what is left, or is not UTF-8.
    pub(crate) fn nullable_string(&mut self) -> Result<Option<String>, Malformed> {
        let length = if self.flexible {
            self.compact_length()?
        } else {
            let length = self.i16()?.into();
            self.signed_length(length)?
        };
        let Some(length) = length else { return Ok(None) };
        let bytes = self.take(length)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_) => Err(self.malformed("text that is not UTF-8")),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// When it is null, longer than what is left, or is not UTF-8.
    pub(crate) fn string(&mut self) -> Result<String, Malformed> {
        self.nullable_string()?.ok_or_else(|| self.malformed("a string is null"))
    }

    /// Bytes that may be null, shared with the response.
    ///
    /// # Errors
    /// When they are longer than what is left.
    pub(crate) fn nullable_bytes(&mut self) -> Result<Option<Bytes>, Malformed> {
        let length = self.length()?;
        length.map(|length| self.take(length)).transpose()
    }

    /// The length of bytes or of an array; `None` for null.
    fn length(&mut self) -> Result<Option<usize>, Malformed> {
        if self.flexible {
            return self.compact_length();
        }
        let length = self.i32()?;
        self.signed_length(length)
    }

    /// How many elements follow, each of which takes `least` bytes or more; `None` for null.
    fn count(&mut self, least: usize) -> Result<Option<usize>, Malformed> {
        let count = self.length()?;
        if count.is_some_and(|count| count > self.left.len() / least.max(1)) {
            return Err(self.malformed("more elements than the response can hold"));
        }
        Ok(count)
    }

    /// How many elements to reserve for: elements are larger here than on the wire, so what is reserved at first takes
    /// about as many bytes as are left, and grows by what was really read.
    pub(super) fn room<T>(&self, count: usize) -> usize {
        count.min(self.left.len() / size_of::<T>().max(1) + 1)
    }

    /// An array that may be null, each element of which takes `least` bytes or more.
    ///
    /// # Errors
    /// When its count cannot be true, and the first error of an element.
    pub(crate) fn nullable_array<T>(
        &mut self,
        least: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<Vec<T>>, Malformed> {
        let Some(count) = self.count(least)? else { return Ok(None) };
        let mut array = Vec::with_capacity(self.room::<T>(count));
        for _ in 0..count {
            array.push(element(self)?);
        }
        Ok(Some(array))
    }

    /// An array, each element of which takes `least` bytes or more.
    ///
    /// # Errors
    /// When it is null, its count cannot be true, and the first error of an element.
    pub(crate) fn array<T>(
        &mut self,
        least: usize,
        element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        self.nullable_array(least, element)?.ok_or_else(|| self.malformed("an array is null"))
    }

    /// Skips an array of 32-bit numbers.
    ///
    /// # Errors
    /// When its count cannot be true.
    pub(crate) fn skip_i32s(&mut self) -> Result<(), Malformed> {
        let count = self.count(4)?.unwrap_or(0);
        self.skip(count * 4)
    }

    /// Skips bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub(crate) fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        self.take(length).map(drop)
    }

    /// The tagged fields at the end of a structure, if this version has them: each is given to `field` by its tag,
    /// with a reader of its bytes. What `field` leaves unread is skipped.
    ///
    /// # Errors
    /// When a field is longer than what is left, and the first error of `field`.
    pub(crate) fn tagged(
        &mut self,
        mut field: impl FnMut(u32, &mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if !self.flexible {
            return Ok(());
        }
        // Each takes two bytes or more, so the loop ends with the bytes.
        for _ in 0..self.uvarint()? {
            let tag = self.uvarint()?;
            let length = self.uvarint()? as usize;
            let at = self.total - self.left.len();
            let left = self.take(length)?;
            field(tag, &mut Self { total: at + length, left, flexible: true })?;
        }
        Ok(())
    }

    /// Skips the tagged fields at the end of a structure, if this version has them.
    ///
    /// # Errors
    /// When one is longer than what is left.
    pub(crate) fn skip_tagged(&mut self) -> Result<(), Malformed> {
        self.tagged(|_, _| Ok(()))
    }
}
