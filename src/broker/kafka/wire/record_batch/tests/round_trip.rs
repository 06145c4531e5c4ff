//! What is written is read back, whole, in part and again.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_record_comes_back(events in events()) {
        for compression in ALL {
            let batch = written(&events, compression);
            prop_assert_eq!(read(&batch, LIMIT).unwrap().unwrap(), numbered(&events));
            let header = peek(&batch).unwrap().unwrap();
            prop_assert_eq!(header.bytes, batch.len());
            prop_assert_eq!(header.count as usize, events.len());
            prop_assert_eq!(header.next_offset(), events.len() as i64);
            prop_assert_eq!(header.base_timestamp, events[0].timestamp);
            prop_assert_eq!(Some(header.max_timestamp), events.iter().map(|event| event.timestamp).max());
        }
    }

    #[test]
    fn some_records_of_a_batch_make_a_batch(events in events(), kept in any::<u128>(), from in 0..5_usize, to in 0..5_usize) {
        let keep = |index: u32| kept >> (index % 128) & 1 == 1;
        let expected: Vec<Event> =
            (0..).zip(&events).filter(|(index, _)| keep(*index)).map(|(_, event)| event.clone()).collect();
        let batch = written(&events, ALL[from]);
        let result = reencode(&batch, ALL[to], keep);
        if expected.is_empty() {
            prop_assert!(matches!(result, Err(BatchError::Unwritable(_))));
        } else {
            let mut batch = result.unwrap();
            stamp(&mut batch, PRODUCER, 9, false);
            prop_assert_eq!(peek(&batch).unwrap().unwrap().base_sequence, 9);
            prop_assert_eq!(read(&batch, LIMIT).unwrap().unwrap(), numbered(&expected));
        }
    }

    #[test]
    fn a_rewound_batch_says_the_same_again(events in events(), compression in 0..5_usize, back in 0..200_usize) {
        let mut open = opened(&written(&events, ALL[compression]), LIMIT).unwrap().unwrap();
        let back = back % events.len();
        let mut mark = open.cursor();
        for (index, event) in events.iter().enumerate() {
            let here = open.cursor();
            if index == back {
                mark = here;
            }
            prop_assert_eq!(&Event::from(open.next().unwrap().unwrap()), event);
            open.rewind(here);
            prop_assert_eq!(&Event::from(open.next().unwrap().unwrap()), event);
        }
        prop_assert!(open.next().unwrap().is_none());
        prop_assert!(open.next().unwrap().is_none());
        open.rewind(mark);
        for event in &events[back..] {
            prop_assert_eq!(&Event::from(open.next().unwrap().unwrap()), event);
        }
        prop_assert!(open.next().unwrap().is_none());
    }

    #[test]
    fn batches_follow_each_other(first in events(), second in events()) {
        let mut bytes = written(&first, Compression::None);
        let end = bytes.len();
        bytes.extend(written(&second, Compression::Lz4));
        prop_assert_eq!(peek(&bytes).unwrap().unwrap().bytes, end);
        prop_assert_eq!(read(&bytes, LIMIT).unwrap().unwrap(), numbered(&first));
        prop_assert_eq!(read(&bytes[end..], LIMIT).unwrap().unwrap(), numbered(&second));
    }
}

#[test]
fn a_buffer_is_used_again() {
    let mut buffer = Vec::new();
    for round in 0..3 {
        let mut encoder = Encoder::reusing(buffer);
        assert!(encoder.is_empty());
        let event = Event::new(round, "key", "value");
        event.append_to(&mut encoder);
        assert_eq!(encoder.len(), 1);
        buffer = encoder.finish(Compression::None).unwrap();
        stamp(&mut buffer, PRODUCER, 0, false);
        assert_eq!(read(&buffer, LIMIT).unwrap().unwrap(), [(0, event)]);
    }
}

#[test]
fn a_batch_without_records_is_not_written() {
    assert!(matches!(Encoder::new(100).finish(Compression::Zstd), Err(BatchError::Unwritable(_))));
}
