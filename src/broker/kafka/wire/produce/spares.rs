//! Memory of batches that have arrived, for those that come next: memory that was just used is in the processor's
//! caches, and is not given back to the system page by page and taken again.

use bytes::Bytes;

/// The most bytes that are kept for one topic. More is given back.
const BYTES_MAX: usize = 4 << 20;
/// How many times as large as what it is for a buffer may be: what waits is bounded by its own bytes, so its memory
/// must not be far more.
const SLACK: usize = 4;
/// Below so many bytes no buffer is too large.
const SMALL: usize = 4 << 10;

/// Whether a buffer with room for `capacity` bytes is not too large for `bytes`.
fn fits(capacity: usize, bytes: usize) -> bool {
    capacity <= SLACK * bytes.max(SMALL)
}

/// Buffers that nobody uses, the last one used on top.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Spares {
    /// An empty buffer with room for `capacity` bytes.
    pub(super) fn take(&mut self, capacity: usize) -> Vec<u8> {
        match self.buffers.pop_if(|buffer| fits(buffer.capacity(), capacity)) {
            Some(buffer) => {
                self.bytes -= buffer.capacity();
                if buffer.capacity() >= capacity { buffer } else { Vec::with_capacity(capacity) }
            }
            None => Vec::with_capacity(capacity),
        }
    }

    /// A batch in memory that is not much larger than it.
    pub(super) fn fitted(&mut self, batch: Vec<u8>) -> Vec<u8> {
        if fits(batch.capacity(), batch.len()) {
            return batch;
        }
        let fitted = batch.as_slice().to_vec();
        self.keep(batch);
        fitted
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
    fn a_small_batch_does_not_take_much_memory() {
        let mut spares = Spares::default();
        spares.keep(Vec::with_capacity(1 << 20));
        assert!(spares.take(1000).capacity() < 2000);
        assert_eq!(spares.bytes, 1 << 20, "the large one waits for a large batch");
        assert_eq!(spares.take(1 << 19).capacity(), 1 << 20);

        let mut batch = Vec::with_capacity(1 << 20);
        batch.extend_from_slice(&[7; 1000]);
        let fitted = spares.fitted(batch);
        assert_eq!((fitted.len(), fitted.capacity()), (1000, 1000));
        assert_eq!(spares.bytes, 1 << 20);
        let place = fitted.as_ptr();
        let again = spares.fitted(fitted);
        assert_eq!(again.as_ptr(), place, "what fits stays where it is");
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
