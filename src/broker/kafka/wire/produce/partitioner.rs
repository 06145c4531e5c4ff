//! Which partition an event goes to: the Java clients' rules, so that a key goes to the same partition whoever
//! publishes it.

/// By the key's hash; events without a key stay with one partition until its batch is sealed, and then go to another
/// ("sticky", KIP-480): many small batches would cost more than few large ones.
#[derive(Debug, Default)]
pub(super) struct Partitioner {
    sticky: Option<usize>,
}

impl Partitioner {
    /// The partition for an event, of `partitions`, at least one.
    pub(super) fn partition(&mut self, key: Option<&[u8]>, partitions: usize) -> usize {
        match key {
            Some(key) => partition_of_key(key, partitions),
            None => *self.sticky.get_or_insert_with(|| fastrand::usize(..partitions)),
        }
    }

    /// The partition's open batch was sealed, or the partition cannot be reached: the next keyless event picks anew.
    pub(super) fn sealed(&mut self, partition: usize) {
        if self.sticky == Some(partition) {
            self.sticky = None;
        }
    }
}

/// The partition of a key, of `partitions`, at least one.
pub(in crate::broker) fn partition_of_key(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions
}

/// MurmurHash2 as Kafka's `Utils.murmur2` has it.
fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ (bytes.len() as u32);
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_like_the_java_client() {
        let cases: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in cases {
            let hash = i32::from_ne_bytes(murmur2(key).to_ne_bytes());
            assert_eq!(hash, expected, "{key:?}");
        }
    }

    #[test]
    fn keyless_events_stay_until_their_batch_is_sealed() {
        let mut partitioner = Partitioner::default();
        let first = partitioner.partition(None, 64);
        assert!((0..100).all(|_| partitioner.partition(None, 64) == first));
        partitioner.sealed(first);
        let others: std::collections::BTreeSet<_> = (0..100)
            .map(|_| {
                let at = partitioner.partition(None, 64);
                partitioner.sealed(at);
                at
            })
            .collect();
        assert!(others.len() > 10, "{others:?}");
    }
}
