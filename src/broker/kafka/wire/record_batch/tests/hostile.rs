//! Bytes that lie. Whatever they are, the answer is an error or nothing, and never a panic.

use super::*;

fn sample() -> Vec<Event> {
    let headers =
        vec![(b"trace".to_vec(), Some(b"1".to_vec())), (b"trace".to_vec(), None), (Vec::new(), Some(Vec::new()))];
    (0..6)
        .map(|row| Event {
            timestamp: 1_763_900_000_000 - row * 100,
            key: (row != 1).then(|| format!("key-{row}").into_bytes()),
            value: (row != 2).then(|| vec![b'v'; 40 * row as usize]),
            headers: if row == 3 { headers.clone() } else { Vec::new() },
        })
        .collect()
}

/// Reads as much as there is to read; the batch after the first too.
fn survive(mut bytes: &[u8]) {
    while let Ok(Some(header)) = peek(bytes) {
        assert!((HEADER_BYTES..=bytes.len()).contains(&header.bytes));
        let (batch, rest) = bytes.split_at(header.bytes);
        let _ = read(batch, 4096);
        let _ = reencode(batch, Compression::None, |index| index % 2 == 0);
        bytes = rest;
    }
}

/// The reason that a batch of these record bytes is refused with.
fn refusal(records: &[u8]) -> &'static str {
    match read(&forged(records, 1), LIMIT) {
        Err(BatchError::Malformed { what, .. }) => what,
        other => panic!("{records:?} gave {other:?}"),
    }
}

#[test]
fn a_changed_byte_is_noticed() {
    let events = sample();
    for compression in ALL {
        let batch = written(&events, compression);
        for at in 0..batch.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut changed = batch.clone();
                changed[at] ^= mask;
                match read(&changed, LIMIT) {
                    Err(_) | Ok(None) => {}
                    // The broker's own fields, which the checksum does not cover.
                    Ok(Some(read)) => {
                        assert!(at < 8 || (12..16).contains(&at), "byte {at} of {compression}");
                        assert!(read.iter().map(|(_, event)| event).eq(&events));
                    }
                }
            }
        }
    }
}

#[test]
fn a_changed_byte_under_a_right_checksum_does_no_harm() {
    for compression in ALL {
        let batch = written(&sample(), compression);
        for at in 0..batch.len() {
            for value in [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, batch[at] ^ 1, batch[at].wrapping_add(2)] {
                let mut changed = batch.clone();
                changed[at] = value;
                survive(&signed(changed));
            }
        }
    }
}

#[test]
fn a_shorter_batch_under_a_right_checksum_is_refused() {
    let events = sample();
    for compression in ALL {
        let batch = written(&events, compression);
        for length in HEADER_BYTES..batch.len() {
            let mut cut = batch[..length].to_vec();
            cut[8..12].copy_from_slice(&(length as i32 - 12).to_be_bytes());
            match read(&signed(cut), LIMIT) {
                Err(_) => {}
                // What ends a compressed stream may be missing, and no record is lost by it.
                Ok(read) => {
                    assert_ne!(compression, Compression::None);
                    assert_eq!(read.unwrap(), numbered(&events));
                }
            }
        }
    }
}

#[test]
fn changed_batches_and_noise_do_no_harm() {
    let mut random = fastrand::Rng::with_seed(0x5eed);
    let batches: Vec<Vec<u8>> = ALL.map(|compression| written(&sample(), compression)).into();
    for _ in 0..20_000 {
        let mut bytes = batches[random.usize(..batches.len())].clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            match random.u8(..5) {
                0 => bytes.truncate(at.max(HEADER_BYTES)),
                1 => bytes.insert(at, random.u8(..)),
                2 => {
                    let end = random.usize(at..bytes.len().min(at + 20).max(at + 1));
                    bytes.extend_from_within(at..end);
                }
                _ => bytes[at] = random.u8(..),
            }
        }
        if random.bool() {
            let counted = bytes.len() as i32 - 12;
            bytes[8..12].copy_from_slice(&counted.to_be_bytes());
        }
        survive(&bytes);
        bytes[16] = 2;
        survive(&signed(bytes));
    }
    for _ in 0..20_000 {
        let noise: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
        survive(&noise);
        // As records, and as each codec's stream.
        let mut batch = forged(&noise, random.i32(0..20));
        batch[22] = random.u8(..5);
        survive(&signed(batch));
    }
}

proptest! {
    #[test]
    fn any_record_bytes_do_no_harm(records in proptest::collection::vec(any::<u8>(), 0..300), count in any::<i32>(), codec in 0..8_u8) {
        let mut batch = forged(&records, count);
        batch[22] = codec;
        survive(&signed(batch));
    }
}

#[test]
fn records_that_contradict_their_bytes_are_refused() {
    // Length, attributes, timestamp delta, offset delta, key, value, number of headers.
    assert_eq!(read(&forged(&[12, 0, 0, 0, 1, 1, 0], 1), LIMIT).unwrap().unwrap().len(), 1);
    let refused: [(&[u8], &str); 20] = [
        (&[1, 0, 0, 0, 1, 1, 0], "a record's length is negative"),
        (&[14, 0, 0, 0, 1, 1, 0], "a record is longer than its batch"),
        (&[14, 0, 0, 0, 1, 1, 0, 0], "a record is longer than its fields"),
        (&[10, 0, 0, 0, 1, 1, 0], "the number of headers is no number"),
        (&[0, 0, 0, 0, 1, 1, 0], "a record ends before its fields do"),
        (&[0xff, 0xff, 0xff, 0xff, 0x1f, 0, 0, 0, 0], "a record's length is no number"),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0, 0, 0], "a record's length is no number"),
        (&[12, 0, 0, 1, 1, 1, 0], "a record's offset is outside of its batch"),
        (&[12, 0, 0, 0, 3, 1, 0], "the length of a key or value is negative"),
        (&[12, 0, 0, 0, 1, 3, 0], "the length of a key or value is negative"),
        (&[12, 0, 0, 0, 8, 1, 0], "a key or value is longer than its record"),
        (&[12, 0, 0, 0, 1, 8, 0], "a key or value is longer than its record"),
        (&[12, 0, 0, 0, 1, 1, 1], "the number of headers is negative"),
        (&[12, 0, 0, 0, 1, 1, 2], "a record says that it has more headers than it has bytes for"),
        (&[16, 0, 0, 0, 1, 1, 2, 1, 1], "a header has no key"),
        (&[16, 0, 0, 0, 1, 1, 2, 0, 3], "the length of a key or value is negative"),
        (&[16, 0, 0, 0, 1, 1, 2, 0, 2], "a key or value is longer than its record"),
        (&[18, 0, 0, 0, 1, 1, 2, 0, 1, 0], "a record is longer than its fields"),
        (
            &[20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f],
            "a record says that it has more headers than it has bytes for",
        ),
        (&[12, 0, 0, 0, 1, 1, 0, 0], "bytes follow the last record"),
    ];
    for (records, reason) in refused {
        assert_eq!(refusal(records), reason, "{records:?}");
    }
}

#[test]
fn varints_end_where_their_numbers_do() {
    // A timestamp delta of ten bytes holds 64 bits, and an eleventh byte or a 65th bit is refused.
    let record = |delta: &[u8]| {
        let mut body = vec![0];
        body.extend_from_slice(delta);
        body.extend_from_slice(&[0, 1, 1, 0]);
        body.insert(0, body.len() as u8 * 2);
        forged(&body, 1)
    };
    let least = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert_eq!(read(&record(&least), LIMIT).unwrap().unwrap()[0].1.timestamp, i64::MIN);
    // A longer form than necessary is still a number, as it is for the Java clients.
    assert_eq!(read(&record(&[0x82, 0x80, 0x80, 0]), LIMIT).unwrap().unwrap()[0].1.timestamp, 1);
    for delta in [
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0x00],
    ] {
        assert!(matches!(read(&record(delta), LIMIT), Err(BatchError::Malformed { .. })), "{delta:?}");
    }
}

#[test]
fn more_records_than_bytes_are_refused_before_they_are_read() {
    let record = [12, 0, 0, 0, 1, 1, 0];
    for (count, right) in [(0, false), (1, true), (2, false), (i32::MAX, false)] {
        let result = opened(&forged(&record, count), LIMIT).and_then(|open| open.unwrap().next().map(|_| ()));
        assert_eq!(result.is_ok(), right, "{count}");
    }
}

#[test]
fn a_failure_is_told_again() {
    let mut records = vec![12, 0, 0, 0, 1, 1, 0];
    records.extend_from_slice(&[12, 0, 0, 0, 3, 1, 0]);
    let mut open = opened(&forged(&records, 2), LIMIT).unwrap().unwrap();
    assert!(open.next().unwrap().is_some());
    let error = open.next().unwrap_err();
    assert_eq!(open.next().unwrap_err(), error);
}

#[test]
fn another_batchs_cursor_does_no_harm() {
    let far = {
        let mut open = opened(&written(&sample(), Compression::None), LIMIT).unwrap().unwrap();
        while open.next().unwrap().is_some() {}
        open.cursor()
    };
    let mut open = opened(&forged(&[12, 0, 0, 0, 1, 1, 0], 1), LIMIT).unwrap().unwrap();
    open.rewind(far);
    let _ = open.next();
}

#[test]
fn a_batch_of_another_length_than_its_header_says_is_refused() {
    let batch = written(&sample(), Compression::None);
    let header = peek(&batch).unwrap().unwrap();
    for length in [0, 20, HEADER_BYTES, batch.len() - 1] {
        let cut = Bytes::copy_from_slice(&batch[..length]);
        assert!(matches!(OpenBatch::open(cut, header, LIMIT), Err(BatchError::Malformed { .. })));
    }
}
