//! Our decoders against the encoders of the kafka-protocol crate, for every API and version, and against bytes that no
//! broker sends.

mod random;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiVersionsRequest, EndTxnRequest, FetchRequest,
    FindCoordinatorRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest, ResponseHeader,
    SaslAuthenticateRequest, SaslHandshakeRequest, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request};
use proptest::prelude::*;

use super::*;
use random::Random;

/// A response as a broker sends it, behind the correlation id.
fn encoded<R: Request>(response: &R::Response, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    ResponseHeader::default().encode(&mut bytes, R::Response::header_version(version)).unwrap();
    response.encode(&mut bytes, version).unwrap();
    bytes.advance(4);
    bytes.freeze()
}

/// A response of each version from `make`, which gives what must be decoded too. Then bytes that are nearly it.
fn agree<R: Call + Request>(
    seed: u64,
    make: impl Fn(&mut Random, i16) -> (<R as Request>::Response, <R as Call>::Response),
) where
    <R as Call>::Response: PartialEq,
{
    for version in <R as Call>::VERSIONS {
        let mut random = Random::new(seed);
        let (response, expected) = make(&mut random, version);
        let bytes = encoded::<R>(&response, version);
        assert_eq!(decode::<R>(bytes.clone(), version), Ok(expected), "{:?} version {version}", R::API);
        for length in 0..bytes.len() {
            decode::<R>(bytes.slice(..length), version).unwrap_err();
        }
        let longer = Bytes::from([&bytes[..], b"x"].concat());
        decode::<R>(longer, version).unwrap_err();
        for _ in 0..20 {
            let _ = decode::<R>(random.mutated(&bytes), version);
        }
    }
}

macro_rules! agreements {
    ($($test:ident: $request:ty, $make:path;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(64))]
            $(
                #[test]
                fn $test(seed: u64) {
                    agree::<$request>(seed, $make);
                }
            )*
        }
    };
}

agreements! {
    api_versions: ApiVersionsRequest, random::api_versions;
    metadata: MetadataRequest, random::metadata;
    fetch: FetchRequest, random::fetch;
    produce: ProduceRequest, random::produce;
    list_offsets: ListOffsetsRequest, random::list_offsets;
    init_producer_id: InitProducerIdRequest, random::init_producer_id;
    find_coordinator: FindCoordinatorRequest, random::find_coordinator;
    add_partitions_to_txn: AddPartitionsToTxnRequest, random::add_partitions;
    add_offsets_to_txn: AddOffsetsToTxnRequest, random::add_offsets;
    txn_offset_commit: TxnOffsetCommitRequest, random::txn_offset_commit;
    end_txn: EndTxnRequest, random::end_txn;
    sasl_handshake: SaslHandshakeRequest, random::sasl_handshake;
    sasl_authenticate: SaslAuthenticateRequest, random::sasl_authenticate;
}

proptest! {
    #[test]
    fn random_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        decode_any(&data);
    }

    #[test]
    fn uvarints_are_read_as_written(value: u32) {
        let mut bytes = Vec::new();
        let mut left = value;
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        prop_assert_eq!(Reader::new(bytes.into(), true).uvarint(), Ok(value));
    }
}

#[test]
fn uvarints_of_more_than_32_bits_are_refused() {
    for bytes in [&[0xff, 0xff, 0xff, 0xff, 0x10][..], &[0x80, 0x80, 0x80, 0x80, 0x80, 0][..], &[0x80]] {
        Reader::new(Bytes::copy_from_slice(bytes), true).uvarint().unwrap_err();
    }
}

#[test]
fn a_count_that_the_bytes_cannot_hold_reserves_nothing() {
    for flexible in [false, true] {
        let mut bytes = BytesMut::new();
        if flexible {
            bytes.put_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        } else {
            bytes.put_i32(i32::MAX);
        }
        bytes.put_bytes(0, 100);
        let mut reader = Reader::new(bytes.freeze(), flexible);
        let error = reader.array(1, |reader| reader.u8()).unwrap_err();
        assert_eq!(error.what, "more elements than the response can hold");
    }
    let mut reader = Reader::new(Bytes::from_static(&[0xff, 0xff, 0xff, 0xfe]), false);
    assert_eq!(reader.array(1, |reader| reader.u8()).unwrap_err().what, "a negative length");
    let mut reader = Reader::new(Bytes::from_static(&[0x80, 0, 0]), false);
    assert_eq!(reader.string().unwrap_err().what, "a negative length");
}

#[test]
fn what_is_reserved_at_first_is_no_more_than_what_is_left() {
    let mut reader = Reader::new([&1000_i32.to_be_bytes()[..], &[7; 1000]].concat().into(), false);
    assert_eq!(reader.room::<[u8; 64]>(1000), 16);
    assert_eq!(reader.room::<[u8; 64]>(3), 3);
    let array = reader.array(1, |reader| Ok([reader.u8()?; 64])).unwrap();
    assert_eq!(array, [[7; 64]; 1000]);
}

#[test]
fn an_error_tells_its_place() {
    let mut reader = Reader::new([&2_i32.to_be_bytes()[..], &[7; 2]].concat().into(), false);
    let mut seen = 0;
    let array = reader.array(1, |reader| {
        seen += 1;
        if seen == 2 { Err(reader.malformed("enough")) } else { reader.u8() }
    });
    assert_eq!(array.unwrap_err(), Malformed { at: 5, what: "enough" });
}

#[test]
fn codes_have_names_and_meanings() {
    assert_eq!(ErrorCode(6).to_string(), "NOT_LEADER_OR_FOLLOWER (6)");
    assert_eq!(ErrorCode(999).to_string(), "UNKNOWN_ERROR_CODE (999)");
    assert!(ErrorCode::NONE.is_ok() && !ErrorCode::NONE.is_retriable());
    assert!(ErrorCode::NOT_LEADER_OR_FOLLOWER.is_stale_metadata() && ErrorCode::NOT_LEADER_OR_FOLLOWER.is_retriable());
    assert!(ErrorCode::REQUEST_TIMED_OUT.is_retriable() && !ErrorCode::REQUEST_TIMED_OUT.is_stale_metadata());
    assert!(ErrorCode::TOPIC_AUTHORIZATION_FAILED.is_denied());
    assert!(!ErrorCode::OUT_OF_ORDER_SEQUENCE_NUMBER.is_retriable());
}

#[test]
fn codes_agree_with_the_crate_about_what_may_be_tried_again() {
    let differ = (-1..=133).map(ErrorCode).filter(|code| {
        let theirs = kafka_protocol::ResponseError::try_from_code(code.0);
        code.is_retriable() != theirs.is_some_and(|error| error.is_retriable())
    });
    assert_eq!(differ.collect::<Vec<_>>(), [ErrorCode::CONCURRENT_TRANSACTIONS]);
}
