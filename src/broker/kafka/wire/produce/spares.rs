//! Memory of batches that have arrived, for those that come next: memory that was just used is in the processor's
//! caches, and is not given back to the system page by page and taken again.

use bytes::Bytes;

/// The most bytes that are kept for one topic. More is given back.
const BYTES_MAX: usize = 4 << 20;

/// Buffers that nobody uses, the last one used on top.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spares {
    /// An empty buffer with room for `capacity` bytes.
    pub(super) fn take(&mut self, capacity: usize) -> Vec<u8> {
        if let Some(buffer) = self.buffers.pop() {
            self.bytes -= buffer.capacity();
            if buffer.capacity() >= capacity {
                return buffer;
            }
        }
        Vec::with_capacity(capacity)
    }

    /// Keeps a buffer.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && self.bytes + buffer.capacity() <= BYTES_MAX {
            buffer.clear();
            self.bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }

    /// Keeps the memory of what was sent, unless somebody still reads it.
    pub(super) fn keep_sent(&mut self, bytes: Bytes) {
        if let Ok(mut bytes) = bytes.try_into_mut() {
            // Else every byte would be copied onto itself.
            bytes.clear();
            self.keep(bytes.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again() {
        let mut spares = Spares::default();
        let buffer = vec![7; 1000];
        let place = buffer.as_ptr();
        spares.keep_sent(Bytes::from(buffer));
        let again = spares.take(900);
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), place);
        assert_eq!(spares.bytes, 0);
    }

    #[test]
    fn what_is_too_small_is_given_back() {
        let mut spares = Spares::default();
        spares.keep(Vec::with_capacity(10));
        assert!(spares.take(11).capacity() >= 11);
        assert!(spares.buffers.is_empty());
    }

    #[test]
    fn what_is_still_read_stays() {
        let mut spares = Spares::default();
        let bytes = Bytes::from(vec![7; 1000]);
        let reader = bytes.clone();
        spares.keep_sent(bytes);
        assert!(spares.buffers.is_empty());
        assert_eq!(reader, vec![7; 1000]);
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let mut spares = Spares::default();
        for _ in 0..100 {
            spares.keep(Vec::with_capacity(BYTES_MAX / 8));
        }
        assert!(spares.bytes <= BYTES_MAX);
        assert_eq!(spares.buffers.iter().map(Vec::capacity).sum::<usize>(), spares.bytes);
    }
}
