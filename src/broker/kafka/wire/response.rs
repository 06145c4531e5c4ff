//! What brokers answer, decoded from bytes that are not trusted.
//!
//! The kafka-protocol crate encodes the requests. Its decoders are not used: they reserve as many elements as a count
//! says, before they look whether the bytes can hold them.
//!
//! This module is complete in itself, so that the fuzzer can be built from its files alone: it names nothing of the
//! crate around it.

mod cluster;
mod code;
mod fetch;
mod produce;
mod reader;
mod sasl;
mod transaction;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiKey, ApiVersionsRequest, EndTxnRequest, FetchRequest,
    FindCoordinatorRequest, InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, ProduceRequest,
    SaslAuthenticateRequest, SaslHandshakeRequest, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Encodable, HeaderVersion};

pub(crate) use cluster::{ApiRange, ApiVersionsResponse, FindCoordinatorResponse, MetadataResponse};
pub(crate) use code::ErrorCode;
pub(crate) use fetch::{Aborted, FetchResponse, FetchedPartition, ListOffsetsResponse};
pub(crate) use produce::{InitProducerIdResponse, ProduceResponse, ProducedPartition};
pub(crate) use reader::{Malformed, Reader};
pub(crate) use sasl::{SaslAuthenticateResponse, SaslHandshakeResponse};
pub(crate) use transaction::{
    AddOffsetsToTxnResponse, AddPartitionsToTxnResponse, EndTxnResponse, TxnOffsetCommitResponse,
};

/// A request of the protocol, and what answers it.
pub(crate) trait Call: Encodable + HeaderVersion {
    /// Its API.
    const API: ApiKey;
    /// The versions that are spoken here.
    const VERSIONS: RangeInclusive<i16>;
    /// The answer.
    type Response: Response;

    /// How long this request lets the broker wait before it answers.
    fn broker_wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// The answer to a request.
pub(crate) trait Response: Sized + Debug {
    /// Reads the body of a response of this version, one of [`Call::VERSIONS`].
    ///
    /// # Errors
    /// When it does not follow the protocol.
    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed>;
}

macro_rules! calls {
    ($($request:ty, $api:ident, $versions:expr, $response:ty $(, waits $wait:ident)?;)*) => {
        $(
            impl Call for $request {
                const API: ApiKey = ApiKey::$api;
                const VERSIONS: RangeInclusive<i16> = $versions;
                type Response = $response;

                $(fn broker_wait(&self) -> Duration {
                    Duration::from_millis(u64::try_from(self.$wait).unwrap_or(0))
                })?
            }
        )*

        /// Decodes `data` as every response that is known, in every version, and forgets the result: for tests that
        /// look for bytes which a decoder cannot bear.
        #[cfg_attr(not(test), allow(dead_code, reason = "for the fuzzer, which is built from these files alone"))]
        pub fn decode_any(data: &[u8]) {
            let data = Bytes::copy_from_slice(data);
            $(
                for version in <$request as Call>::VERSIONS {
                    let _ = decode::<$request>(data.clone(), version);
                }
            )*
        }
    };
}

calls! {
    ApiVersionsRequest, ApiVersions, 0..=3, ApiVersionsResponse;
    // Nothing is missed from the ninth, and librdkafka's mock cluster puts bytes behind its end.
    MetadataRequest, Metadata, 7..=8, MetadataResponse;
    FetchRequest, Fetch, 11..=12, FetchResponse, waits max_wait_ms;
    ProduceRequest, Produce, 7..=9, ProduceResponse, waits timeout_ms;
    ListOffsetsRequest, ListOffsets, 4..=6, ListOffsetsResponse;
    InitProducerIdRequest, InitProducerId, 1..=4, InitProducerIdResponse;
    FindCoordinatorRequest, FindCoordinator, 2..=3, FindCoordinatorResponse;
    AddPartitionsToTxnRequest, AddPartitionsToTxn, 1..=3, AddPartitionsToTxnResponse;
    AddOffsetsToTxnRequest, AddOffsetsToTxn, 1..=3, AddOffsetsToTxnResponse;
    TxnOffsetCommitRequest, TxnOffsetCommit, 3..=3, TxnOffsetCommitResponse;
    EndTxnRequest, EndTxn, 1..=3, EndTxnResponse;
    SaslHandshakeRequest, SaslHandshake, 1..=1, SaslHandshakeResponse;
    SaslAuthenticateRequest, SaslAuthenticate, 1..=2, SaslAuthenticateResponse;
}

/// Decodes what follows the correlation id of a response: the rest of the header, and the body.
///
/// # Errors
/// When it does not follow the protocol, or goes on behind its end.
pub(crate) fn decode<R: Call>(body: Bytes, version: i16) -> Result<R::Response, Malformed> {
    let flexible = R::header_version(version) >= 2;
    let mut reader = Reader::new(body, flexible);
    // ApiVersions keeps the old header in all versions, so that a client can read an answer to a version that the
    // broker does not know (KIP-511).
    if R::API != ApiKey::ApiVersions {
        reader.skip_tagged()?;
    }
    let response = R::Response::decode(&mut reader, version)?;
    if !reader.is_empty() {
        return Err(reader.malformed("the response goes on behind its end"));
    }
    Ok(response)
}
