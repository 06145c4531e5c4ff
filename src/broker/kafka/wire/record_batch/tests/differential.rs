//! Agreement with another implementation, that of the kafka-protocol crate, in both directions.
//!
//! It cannot hold a header twice and starts a new batch where batch fields change, so the events here do neither.

use bytes::BytesMut;
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as theirs;

use super::*;

fn foreign(offset: i64, event: &Event) -> theirs::Record {
    let headers: IndexMap<StrBytes, Option<Bytes>> = event
        .headers
        .iter()
        .map(|(key, value)| {
            let key = String::from_utf8(key.clone()).unwrap();
            (StrBytes::from_string(key), value.clone().map(Bytes::from))
        })
        .collect();
    theirs::Record {
        transactional: true,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 5,
        producer_id: PRODUCER.id,
        producer_epoch: PRODUCER.epoch,
        timestamp_type: theirs::TimestampType::Creation,
        offset,
        sequence: 100 + offset as i32,
        timestamp: event.timestamp,
        key: event.key.clone().map(Bytes::from),
        value: event.value.clone().map(Bytes::from),
        headers,
    }
}

fn plain_events() -> impl Strategy<Value = Vec<Event>> {
    let event =
        (event(), 0..1_000_000_i64, proptest::collection::btree_map("[a-z]{0,9}", proptest::option::of(bytes()), 0..4));
    let event = event.prop_map(|(event, later, headers)| Event {
        // Theirs subtracts without wrapping.
        timestamp: 1_763_900_000_000 + later,
        headers: headers.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect(),
        ..event
    });
    proptest::collection::vec(event, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn theirs_is_read(events in plain_events()) {
        let records: Vec<theirs::Record> = (0..).zip(&events).map(|(offset, event)| foreign(offset, event)).collect();
        let options = theirs::RecordEncodeOptions { version: 2, compression: theirs::Compression::None };
        let mut bytes = BytesMut::new();
        theirs::RecordBatchEncoder::encode(&mut bytes, &records, &options).unwrap();
        let header = peek(&bytes).unwrap().unwrap();
        prop_assert_eq!(header.bytes, bytes.len());
        prop_assert_eq!((header.producer_id, header.producer_epoch), (PRODUCER.id, PRODUCER.epoch));
        prop_assert_eq!((header.base_sequence, header.leader_epoch, header.is_transactional), (100, 5, true));
        prop_assert_eq!(read(&bytes, LIMIT).unwrap().unwrap(), numbered(&events));
    }

    #[test]
    fn theirs_reads_ours(events in plain_events()) {
        let mut batch = written(&events, Compression::None);
        stamp(&mut batch, PRODUCER, 100, true);
        batch[12..16].copy_from_slice(&5_i32.to_be_bytes());
        let set = theirs::RecordBatchDecoder::decode(&mut Bytes::from(batch)).unwrap();
        let expected: Vec<theirs::Record> = (0..).zip(&events).map(|(offset, event)| foreign(offset, event)).collect();
        prop_assert_eq!(set.records, expected);
    }
}
