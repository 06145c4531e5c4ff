//! What the header and its bits mean.

use super::*;

/// One record, as Kafka's protocol documentation lays it out, and as the Java producer writes it.
const GOLDEN: [u8; 79] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 67, 0, 0, 0, 0, 2, 0x73, 0x6d, 0x29, 0x7b, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 34, 1, 0xd0, 15, 2, 10, b'h',
    b'e', b'l', b'l', b'o', 10, b'w', b'o', b'r', b'l', b'd', 0,
];

fn two() -> Vec<u8> {
    written(&[Event::new(1000, "a", "1"), Event::new(900, "b", "2")], Compression::None)
}

/// With these attribute bits set as well.
fn with_attributes(mut batch: Vec<u8>, bits: u8) -> Vec<u8> {
    batch[22] |= bits;
    signed(batch)
}

#[test]
fn known_bytes_are_read() {
    let header = peek(&GOLDEN).unwrap().unwrap();
    assert_eq!((header.count, header.last_offset_delta, header.bytes), (1, 3, 79));
    let mut open = OpenBatch::unchecked(&Bytes::from_static(&GOLDEN), header, LIMIT).unwrap();
    let record = open.next().unwrap().unwrap();
    assert_eq!((record.offset, record.timestamp), (1, 1000));
    assert_eq!((record.key, record.value), (Some(&b"hello"[..]), Some(&b"world"[..])));
    assert!(open.next().unwrap().is_none());
}

#[test]
fn a_batch_lies_where_its_offset_says() {
    let mut batch = two();
    batch[..8].copy_from_slice(&5_000_000_000_i64.to_be_bytes());
    batch[12..16].copy_from_slice(&7_i32.to_be_bytes());
    // The broker writes both after the producer's checksum, which does not cover them.
    let header = peek(&batch).unwrap().unwrap();
    assert_eq!((header.base_offset, header.leader_epoch, header.next_offset()), (5_000_000_000, 7, 5_000_000_002));
    let offsets: Vec<i64> = read(&batch, LIMIT).unwrap().unwrap().iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [5_000_000_000, 5_000_000_001]);
}

#[test]
fn compacted_batches_keep_their_end() {
    // Of three records the second is left.
    let record = [18, 0, 0, 2, 2, b'k', 4, b'v', b'2', 0];
    let mut batch = forged(&record, 1);
    batch[23..27].copy_from_slice(&2_i32.to_be_bytes());
    let batch = signed(batch);
    assert_eq!(peek(&batch).unwrap().unwrap().next_offset(), 3);
    assert_eq!(read(&batch, LIMIT).unwrap().unwrap(), [(1, Event::new(0, "k", "v2"))]);

    // Nothing is left, whatever the batch was compressed with.
    for compression in 0..5 {
        let empty = with_attributes(forged(&[], 0), compression);
        assert_eq!(peek(&empty).unwrap().unwrap().count, 0);
        assert_eq!(read(&empty, LIMIT).unwrap().unwrap(), []);
    }
}

#[test]
fn offsets_do_not_overflow() {
    let mut batch = two();
    batch[..8].copy_from_slice(&(i64::MAX - 2).to_be_bytes());
    assert_eq!(peek(&batch).unwrap().unwrap().next_offset(), i64::MAX);
    assert_eq!(read(&batch, LIMIT).unwrap().unwrap()[1].0, i64::MAX - 1);
    batch[..8].copy_from_slice(&(i64::MAX - 1).to_be_bytes());
    assert!(matches!(peek(&batch), Err(BatchError::Malformed { .. })));
}

#[test]
fn the_brokers_time_holds_for_every_record() {
    let mut batch = two();
    batch[35..43].copy_from_slice(&5555_i64.to_be_bytes());
    let batch = with_attributes(batch, 0x08);
    assert!(peek(&batch).unwrap().unwrap().log_append_time);
    let times: Vec<i64> = read(&batch, LIMIT).unwrap().unwrap().iter().map(|(_, event)| event.timestamp).collect();
    assert_eq!(times, [5555, 5555]);
}

#[test]
fn timestamps_count_from_a_delete_horizon_too() {
    // The cleaner writes the horizon as the base, and the records' deltas from it.
    let mut batch = forged(&[16, 0, 0xcf, 0x0f, 0, 2, b'k', 1, 0], 1);
    batch[27..35].copy_from_slice(&10_000_i64.to_be_bytes());
    let batch = with_attributes(batch, 0x40);
    let events = read(&batch, LIMIT).unwrap().unwrap();
    assert_eq!(events[0].1.timestamp, 9_000);
    assert_eq!((events[0].1.key.as_deref(), events[0].1.value.as_deref()), (Some(&b"k"[..]), None));
}

#[test]
fn control_batches_say_what_happened() {
    let batch = |key: &[u8]| {
        let event = Event { timestamp: 0, key: Some(key.into()), value: Some(vec![0; 6]), headers: Vec::new() };
        with_attributes(written(&[event], Compression::None), 0x30)
    };
    for (key, expected) in [
        (&[0, 0, 0, 0][..], Some(ControlType::Abort)),
        (&[0, 0, 0, 1], Some(ControlType::Commit)),
        (&[0, 9, 0, 1, 9], Some(ControlType::Commit)),
        (&[0, 0, 0, 2], Some(ControlType::Other(2))),
        (&[0xff, 0xff, 0, 1], None),
        (&[0, 0, 0], None),
        (&[], None),
    ] {
        let batch = batch(key);
        let mut open = opened(&batch, LIMIT).unwrap().unwrap();
        assert!(open.header().is_control && open.header().is_transactional);
        assert_eq!(control_type(&open.next().unwrap().unwrap()), expected, "{key:?}");
    }
}

#[test]
fn a_stamp_replaces_the_one_before() {
    let mut batch = written(&[Event::new(1, "a", "b")], Compression::Gzip);
    let unstamped = batch.clone();
    for (id, epoch, sequence, transactional) in
        [(1, 2, 3, true), (i64::MAX, i16::MAX, i32::MAX, true), (5, 0, 0, false)]
    {
        stamp(&mut batch, Producer { id, epoch }, sequence, transactional);
        let header = peek(&batch).unwrap().unwrap();
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (id, epoch, sequence));
        assert_eq!((header.is_transactional, header.is_control), (transactional, false));
        assert_eq!(header.compression, Compression::Gzip);
        assert_eq!(read(&batch, LIMIT).unwrap().unwrap(), [(0, Event::new(1, "a", "b"))]);
    }
    stamp(&mut batch, PRODUCER, 0, false);
    assert_eq!(batch, unstamped);
    // No whole header, nothing to stamp.
    for length in 0..HEADER_BYTES {
        stamp(&mut batch[..length], PRODUCER, 0, true);
    }
}

#[test]
fn a_batch_that_is_not_stamped_has_no_producer() {
    let mut encoder = Encoder::new(0);
    encoder.append(None, None, 0, std::iter::empty());
    let header = peek(&encoder.finish(Compression::None).unwrap()).unwrap().unwrap();
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (-1, -1, -1));
}

#[test]
fn a_batch_that_is_cut_short_is_none() {
    let batch = two();
    for length in 0..batch.len() {
        assert_eq!(peek(&batch[..length]).unwrap(), None, "{length} bytes");
    }
}

#[test]
fn older_formats_are_named() {
    for magic in [0, 1, 3, -1] {
        let mut batch = two();
        batch[7] = 9;
        batch[16] = i8::cast_unsigned(magic);
        let error = peek(&batch).unwrap_err();
        assert_eq!(error, BatchError::Magic { offset: 9, magic });
        assert!(error.to_string().contains(&format!("message format {magic};")), "{error}");
        // Told even when the batch is cut short: waiting for the rest would not help.
        assert_eq!(peek(&batch[..17]).unwrap_err(), error);
    }
}

#[test]
fn fields_that_cannot_be_are_refused() {
    for (at, bytes) in [
        (0, &(-1_i64).to_be_bytes()[..]),
        (8, &(-1_i32).to_be_bytes()),
        (8, &48_i32.to_be_bytes()),
        (8, &i32::MIN.to_be_bytes()),
        (21, &5_i16.to_be_bytes()),
        (21, &7_i16.to_be_bytes()),
        (23, &(-1_i32).to_be_bytes()),
        (57, &(-1_i32).to_be_bytes()),
    ] {
        let mut batch = two();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(matches!(peek(&batch), Err(BatchError::Malformed { .. })), "at {at}");
    }
}
