//! What ends or joins a transaction (KIP-98): AddPartitionsToTxn, AddOffsetsToTxn, TxnOffsetCommit, EndTxn.

use std::time::Duration;

use super::{ErrorCode, Malformed, Reader, Response};

/// What became of a topic's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicErrors {
    /// The topic.
    pub(crate) name: String,
    /// Its partitions, each with its error.
    pub(crate) partitions: Vec<(i32, ErrorCode)>,
}

fn topics(reader: &mut Reader) -> Result<Vec<TopicErrors>, Malformed> {
    reader.array(3, |reader| {
        let name = reader.string()?;
        let partitions = reader.array(6, |reader| {
            let partition = (reader.i32()?, ErrorCode(reader.i16()?));
            reader.skip_tagged()?;
            Ok(partition)
        })?;
        reader.skip_tagged()?;
        Ok(TopicErrors { name, partitions })
    })
}

macro_rules! by_partition {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq)]
            pub(crate) struct $name {
                /// How long this client is throttled.
                pub(crate) throttle: Duration,
                /// The topics.
                pub(crate) topics: Vec<TopicErrors>,
            }

            impl Response for $name {
                fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
                    let (throttle, topics) = (reader.throttle()?, topics(reader)?);
                    reader.skip_tagged()?;
                    Ok(Self { throttle, topics })
                }
            }
        )*
    };
}

macro_rules! as_a_whole {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub(crate) struct $name {
                /// How long this client is throttled.
                pub(crate) throttle: Duration,
                /// Such as `INVALID_TXN_STATE`.
                pub(crate) error: ErrorCode,
            }

            impl Response for $name {
                fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
                    let (throttle, error) = (reader.throttle()?, ErrorCode(reader.i16()?));
                    reader.skip_tagged()?;
                    Ok(Self { throttle, error })
                }
            }
        )*
    };
}

by_partition! {
    /// Whether partitions joined the transaction.
    AddPartitionsToTxnResponse;
    /// Whether offsets will be committed with the transaction.
    TxnOffsetCommitResponse;
}

as_a_whole! {
    /// Whether a group's offsets joined the transaction.
    AddOffsetsToTxnResponse;
    /// Whether the transaction was committed or aborted.
    EndTxnResponse;
}
