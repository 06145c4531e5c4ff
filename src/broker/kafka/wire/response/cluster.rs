//! Who is there and what they speak: ApiVersions, Metadata, FindCoordinator.

use std::time::Duration;

use super::{ErrorCode, Malformed, Reader, Response};

/// The versions of one API that a broker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApiRange {
    /// The API's key.
    pub(crate) api: i16,
    /// The oldest version.
    pub(crate) min: i16,
    /// The newest version.
    pub(crate) max: i16,
}

/// What a broker speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiVersionsResponse {
    /// `UNSUPPORTED_VERSION` when the broker does not know the version of the request.
    pub(crate) error: ErrorCode,
    /// Its APIs.
    pub(crate) apis: Vec<ApiRange>,
}

impl Response for ApiVersionsResponse {
    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed> {
        let error = ErrorCode(reader.i16()?);
        let apis = reader.array(6, |reader| {
            let range = ApiRange { api: reader.i16()?, min: reader.i16()?, max: reader.i16()? };
            reader.skip_tagged()?;
            Ok(range)
        })?;
        if version >= 1 {
            reader.throttle()?;
        }
        reader.skip_tagged()?;
        Ok(Self { error, apis })
    }
}

/// A broker of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broker {
    /// Its id.
    pub(crate) id: i32,
    /// Its name or address.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// Where it runs.
    pub(crate) rack: Option<String>,
}

/// A partition of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Such as `LEADER_NOT_AVAILABLE`.
    pub(crate) error: ErrorCode,
    /// Its number.
    pub(crate) id: i32,
    /// The id of the broker that leads it, if one does.
    pub(crate) leader: Option<i32>,
    /// The leader's epoch (KIP-320); -1 when it is not known.
    pub(crate) leader_epoch: i32,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Topic {
    /// Such as `UNKNOWN_TOPIC_OR_PARTITION`.
    pub(crate) error: ErrorCode,
    /// Its name.
    pub(crate) name: String,
    /// Its partitions, in no order.
    pub(crate) partitions: Vec<Partition>,
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MetadataResponse {
    /// How long this client is throttled.
    pub(crate) throttle: Duration,
    /// All brokers that are up.
    pub(crate) brokers: Vec<Broker>,
    /// The id of the controller, if there is one.
    pub(crate) controller: Option<i32>,
    /// The topics that were asked for.
    pub(crate) topics: Vec<Topic>,
}

/// An id where -1 means that there is none.
fn id(id: i32) -> Option<i32> {
    (id >= 0).then_some(id)
}

impl Response for MetadataResponse {
    fn decode(reader: &mut Reader, version: i16) -> Result<Self, Malformed> {
        let throttle = reader.throttle()?;
        let brokers = reader.array(10, |reader| {
            let (id, host) = (reader.i32()?, reader.string()?);
            let broker = Broker { id, host, port: reader.port()?, rack: reader.nullable_string()? };
            reader.skip_tagged()?;
            Ok(broker)
        })?;
        reader.nullable_string()?; // the cluster's id
        let controller = id(reader.i32()?);
        let topics = reader.array(5, |reader| topic(reader, version))?;
        if version >= 8 {
            reader.i32()?; // what this client may do with the cluster (KIP-430)
        }
        reader.skip_tagged()?;
        Ok(Self { throttle, brokers, controller, topics })
    }
}

fn topic(reader: &mut Reader, version: i16) -> Result<Topic, Malformed> {
    let (error, name) = (ErrorCode(reader.i16()?), reader.string()?);
    reader.u8()?; // whether it is internal
    let partitions = reader.array(17, |reader| {
        let (error, number) = (ErrorCode(reader.i16()?), reader.i32()?);
        let (leader, leader_epoch) = (id(reader.i32()?), reader.i32()?);
        for _ in ["replicas", "in-sync replicas", "offline replicas"] {
            reader.skip_i32s()?;
        }
        reader.skip_tagged()?;
        Ok(Partition { error, id: number, leader, leader_epoch })
    })?;
    if version >= 8 {
        reader.i32()?; // what this client may do with the topic (KIP-430)
    }
    reader.skip_tagged()?;
    Ok(Topic { error, name, partitions })
}

/// The broker that coordinates a group or a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Coordinator {
    /// Its id.
    pub(crate) id: i32,
    /// Its name or address.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
}

/// Where a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FindCoordinatorResponse {
    /// How long this client is throttled.
    pub(crate) throttle: Duration,
    /// Such as `COORDINATOR_NOT_AVAILABLE`.
    pub(crate) error: ErrorCode,
    /// The broker's words on the error.
    pub(crate) message: Option<String>,
    /// The coordinator; `None` with an error.
    pub(crate) coordinator: Option<Coordinator>,
}

impl Response for FindCoordinatorResponse {
    fn decode(reader: &mut Reader, _version: i16) -> Result<Self, Malformed> {
        let (throttle, error) = (reader.throttle()?, ErrorCode(reader.i16()?));
        let message = reader.nullable_string()?;
        let (id, host, port) = (reader.i32()?, reader.string()?, reader.i32()?);
        let coordinator = if error.is_ok() {
            let port = u16::try_from(port).map_err(|_| reader.malformed("not a port"))?;
            Some(Coordinator { id, host, port })
        } else {
            None
        };
        reader.skip_tagged()?;
        Ok(Self { throttle, error, message, coordinator })
    }
}
